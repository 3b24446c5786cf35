"""Writes a sentence model of BERT's kind as an ONNX graph: token ids in, vectors of length 1 out.

The matrices are kept in eight bits, and what they are multiplied with is brought to eight bits row by row as it comes:
a text's vector does not depend on what else is in its batch, and stays within 0.99 of the exact one's cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from storage.embed.bert import WEIGHTS, Shape, read_shape, read_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import NodeProto, TensorProto

    from storage.embed.bert import Tensors

    Matrix = NDArray[np.float32]

OPSET = 18
IR_VERSION = 9
"""Both are read by onnxruntime 1.17 and later."""
FUSED = "com.microsoft"
"""onnxruntime's own operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md."""
WEIGHT_STEPS = 127
GELU_ZERO = 40
GELU_TOP_MIN = 0.92
"""GELU's results are never under -0.17, so most of the 256 steps are for what is above; with a row's top taken for at
least this, -0.17 falls within the `GELU_ZERO` steps below."""


def write_onnx(source: Path, target: Path, *, exact: bool = False) -> Shape:
    """Turn the model in the folder `source` into the file `target`. Blocks for seconds and takes memory.

    With `exact`, nothing is brought to eight bits. Raises `ConfigError` for a model that can't be run.
    """
    import onnx

    shape = read_shape(source)
    graph = _Graph(read_tensors(source / WEIGHTS), shape, exact)
    graph.embed()
    for layer in range(shape.layers):
        graph.attend(f"encoder.layer.{layer}.attention")
        graph.feed_forward(f"encoder.layer.{layer}")
    graph.pool()
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT32, ["texts", "tokens"])
    lengths = onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ["texts"])
    vectors = onnx.helper.make_tensor_value_info("vectors", onnx.TensorProto.FLOAT, ["texts", shape.dimension])
    body = onnx.helper.make_graph(graph.nodes, "sentence", [ids, lengths], [vectors], graph.constants)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(FUSED, 1)]
    onnx.save(onnx.helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION), target)
    return shape


class _Graph:
    """The graph as it grows; `_x` names the value at its tip, of shape (texts, tokens, dimension)."""

    def __init__(self, tensors: Tensors, shape: Shape, exact: bool) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._tensors = tensors
        self._shape = shape
        self._exact = exact
        self._x = ""

    def embed(self) -> None:
        """The tokens' own vectors and those of their places, added."""
        import numpy as np

        words = self._tensors["embeddings.word_embeddings.weight"]
        if self._exact:
            found = self._add("Gather", self._constant(words), "input_ids")
        else:
            steps = np.abs(words).max(axis=1, keepdims=True) / WEIGHT_STEPS
            numbers = np.rint(words / np.maximum(steps, 1e-12)).astype(np.int8)
            found = self._to_float(self._add("Gather", self._constant(numbers), "input_ids"))
            found = self._add("Mul", found, self._add("Gather", self._constant(steps), "input_ids"))
        places = self._tensors["embeddings.position_embeddings.weight"]
        places = places + self._tensors["embeddings.token_type_embeddings.weight"][0]
        here = self._add("Slice", self._constant(places), self._ints(0), self._tokens(), self._ints(0))
        weight, bias = (self._tensor(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias"))
        both = self._add("Add", found, here)
        self._x = self._add("LayerNormalization", both, weight, bias, axis=-1, epsilon=self._shape.epsilon)

    def attend(self, name: str) -> None:
        """One layer's attention, added to what came in."""
        import numpy as np

        parts = [f"{name}.self.{part}" for part in ("query", "key", "value")]
        operand = self._operand(self._x)
        projected = [self._times(operand, part) for part in parts]
        bias = self._constant(np.concatenate([self._tensors[f"{part}.bias"] for part in parts]))
        heads = self._shape.heads
        seen = self._add("MultiHeadAttention", *projected, bias, "lengths", domain=FUSED, num_heads=heads)
        self._join(self._times(self._operand(seen), f"{name}.output.dense"), f"{name}.output")

    def feed_forward(self, name: str) -> None:
        """One layer's two dense layers, added to what came in."""
        wide = self._times(self._operand(self._x), f"{name}.intermediate.dense")
        wide = self._add("BiasGelu", wide, self._tensor(f"{name}.intermediate.dense.bias"), domain=FUSED)
        self._join(self._times(self._operand(wide, gelu=True), f"{name}.output.dense"), f"{name}.output")

    def pool(self) -> None:
        """The mean over each text's own tokens, at length 1: as the length is lost, their sum will do."""
        import numpy as np
        import onnx

        count = self._add("Cast", self._add("Squeeze", self._tokens()), to=onnx.TensorProto.INT32)
        zero, one = (self._constant(np.array(number, np.int32)) for number in (0, 1))
        places = self._add("Range", zero, count, one)
        own = self._to_float(self._add("Less", places, self._add("Unsqueeze", "lengths", self._ints(1))))
        total = self._add("MatMul", self._add("Unsqueeze", own, self._ints(1)), self._x)
        flat = self._add("Squeeze", total, self._ints(1))
        self._add("LpNormalization", flat, axis=-1, p=2)
        self.nodes[-1].output[0] = "vectors"

    def _join(self, value: str, name: str) -> None:
        tensors = (f"{name}.LayerNorm.weight", f"{name}.LayerNorm.bias", f"{name}.dense.bias")
        constants = [self._tensor(each) for each in tensors]
        epsilon = self._shape.epsilon
        self._x = self._add("SkipLayerNormalization", value, self._x, *constants, domain=FUSED, epsilon=epsilon)

    def _operand(self, value: str, *, gelu: bool = False) -> tuple[str, ...]:
        """`value` as `_times` takes it: as it is, or each row divided by its top and brought to eight bits, with that
        top, the step and the number that stands for 0."""
        import numpy as np

        if self._exact:
            return (value,)
        zero = GELU_ZERO if gelu else 128
        top = self._add("ReduceMax", value, self._ints(-1), keepdims=1)
        if gelu:
            top = self._add("Max", top, self._constant(np.array(GELU_TOP_MIN, np.float32)))
        else:
            bottom = self._add("Neg", self._add("ReduceMin", value, self._ints(-1), keepdims=1))
            top = self._add("Max", top, bottom)
        step = self._constant(np.array(1 / (255 - zero), np.float32))
        zero_point = self._constant(np.array(zero, np.uint8))
        eight = self._add("QuantizeLinear", self._add("Div", value, top), step, zero_point)
        return eight, top, step, zero_point

    def _times(self, operand: tuple[str, ...], name: str) -> str:
        """`operand` times a dense layer's matrix, without its bias."""
        import numpy as np

        matrix: Matrix = self._tensors[f"{name}.weight"].T
        if self._exact:
            return self._add("MatMul", operand[0], self._constant(matrix))
        eight, top, step, zero_point = operand
        steps = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / WEIGHT_STEPS
        numbers, column_steps = self._constant(np.rint(matrix / steps).astype(np.int8)), self._constant(steps)
        product = self._add("MatMulIntegerToFloat", eight, numbers, step, column_steps, zero_point, domain=FUSED)
        return self._add("Mul", product, top)

    def _tokens(self) -> str:
        """The number of tokens in a row, as a list of one."""
        return self._add("Shape", "input_ids", start=1, end=2)

    def _to_float(self, value: str) -> str:
        import onnx

        return self._add("Cast", value, to=onnx.TensorProto.FLOAT)

    def _tensor(self, name: str) -> str:
        return self._constant(self._tensors[name])

    def _ints(self, *numbers: int) -> str:
        import numpy as np

        return self._constant(np.array(numbers, np.int64))

    def _constant(self, values: NDArray[np.generic]) -> str:
        import numpy as np
        import onnx

        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _add(self, operator: str, *inputs: str, domain: str = "", **attributes: float | int) -> str:
        import onnx

        name = f"value_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], None, None, domain, None, **attributes))
        return name
