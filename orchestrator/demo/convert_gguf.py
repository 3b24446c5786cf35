"""Turns a GGUF file into an ordinary safetensors folder. Run by the engine's own interpreter, as a program:

python convert_gguf.py FOLDER FILE.gguf TARGET
"""

from __future__ import annotations

import sys


def convert(folder: str, file: str, target: str) -> None:
    """Read ``folder/file`` and write `target`: bfloat16 weights, configuration, tokenizer with its chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    for config in (model.config, model.generation_config):
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config  # the weights are plain now
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)


if __name__ == "__main__":
    convert(*sys.argv[1:4])
