"""Small real documents of each kind, made of nothing but the standard library."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from email.message import EmailMessage
from html import escape

OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"
DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/></Types>'
)


def zipped(entries: Mapping[str, str | bytes]) -> bytes:
    """A ZIP archive of these entries."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return held.getvalue()


def relations(*targets: tuple[str, str]) -> str:
    """The relations of an entry: their types and targets; ids are r1, r2, …"""
    rows = "".join(
        f'<Relationship Id="r{number}" Type="{OFFICE}/{kind}" Target="{target}"/>'
        for number, (kind, target) in enumerate(targets, 1)
    )
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{rows}</Relationships>'


def core(title: str) -> str:
    """The properties of an Office document."""
    return (
        '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties"'
        f' xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{escape(title)}</dc:title></cp:coreProperties>'
    )


def package(main: str, entries: Mapping[str, str], title: str = "") -> bytes:
    """An Office document."""
    head = {"[Content_Types].xml": TYPES, "_rels/.rels": relations(("officeDocument", main))}
    return zipped({**head, **entries, **({"docProps/core.xml": core(title)} if title else {})})


# --- Word ---


def w_paragraph(text: str, style: str = "", *, item: bool = False) -> str:
    """A paragraph of WordprocessingML."""
    properties = f'<w:pStyle w:val="{style}"/>' if style else ""
    if item:
        properties += '<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def w_table(rows: Iterable[Iterable[str]]) -> str:
    """A table of WordprocessingML."""
    lines = ("".join(f"<w:tc>{w_paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{line}</w:tr>' for line in lines)}</w:tbl>"


def docx(*body: str, title: str = "", doctype: str = "") -> bytes:
    """A Word document of these paragraphs and tables; its headings are styles of a German Word."""
    styles = "".join(
        f'<w:style w:styleId="berschrift{level}"><w:name w:val="heading {level}"/></w:style>' for level in (1, 2, 3)
    )
    document = f'{doctype}<w:document xmlns:w="{WORD}"><w:body>{"".join(body)}</w:body></w:document>'
    return package(
        "word/document.xml",
        {
            "word/document.xml": document,
            "word/_rels/document.xml.rels": relations(("styles", "styles.xml")),
            "word/styles.xml": f'<w:styles xmlns:w="{WORD}">{styles}</w:styles>',
        },
        title,
    )


# --- PowerPoint ---


def shape(text: str, role: str = "") -> str:
    """A shape with one paragraph."""
    placeholder = f'<p:ph type="{role}"/>' if role else ""
    return (
        f"<p:sp><p:nvSpPr><p:nvPr>{placeholder}</p:nvPr></p:nvSpPr><p:txBody><a:p><a:r><a:t>{escape(text)}</a:t></a:r>"
        "</a:p></p:txBody></p:sp>"
    )


def pptx(slides: Sequence[Sequence[str]], notes: str = "", *, order: Sequence[int] = ()) -> bytes:
    """A presentation of slides of shapes; `order` is that of the show; notes are of the first slide."""
    count = len(slides)
    names = [f"slides/slide{at}.xml" for at in range(1, count + 1)]
    root = f'xmlns:p="{SLIDE}" xmlns:a="{DRAWING}" xmlns:r="{OFFICE}"'
    shown = "".join(f'<p:sldId id="{255 + at}" r:id="r{at}"/>' for at in order or range(1, count + 1))
    entries = {
        "ppt/presentation.xml": f"<p:presentation {root}><p:sldIdLst>{shown}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(*(("slide", name) for name in names)),
        **{f"ppt/{name}": f"<p:sld {root}>{''.join(it)}</p:sld>" for name, it in zip(names, slides, strict=True)},
    }
    if notes:
        entries["ppt/slides/_rels/slide1.xml.rels"] = relations(("notesSlide", "../notesSlides/notesSlide1.xml"))
        entries["ppt/notesSlides/notesSlide1.xml"] = f"<p:notes {root}>{shape(notes)}{shape('7', 'sldNum')}</p:notes>"
    return package("ppt/presentation.xml", entries)


# --- Excel ---


def xlsx(sheets: Mapping[str, str], strings: Sequence[str] = ()) -> bytes:
    """A workbook: for each sheet the XML of its rows. Cell style 1 is a date."""
    names = list(sheets)
    listed = "".join(f'<sheet name="{escape(name)}" sheetId="{at}" r:id="r{at}"/>' for at, name in enumerate(names, 1))
    targets = [("worksheet", f"worksheets/sheet{at}.xml") for at in range(1, len(names) + 1)]
    formats = '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs>'
    shared = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
    return package(
        "xl/workbook.xml",
        {
            "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{OFFICE}"><sheets>{listed}</sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations(
                *targets, ("sharedStrings", "sharedStrings.xml"), ("styles", "styles.xml")
            ),
            "xl/sharedStrings.xml": f'<sst xmlns="{SHEET}">{shared}</sst>',
            "xl/styles.xml": f'<styleSheet xmlns="{SHEET}">{formats}</styleSheet>',
            **{
                f"xl/worksheets/sheet{at}.xml": f'<worksheet xmlns="{SHEET}"><sheetData>{rows}</sheetData></worksheet>'
                for at, rows in enumerate(sheets.values(), 1)
            },
        },
    )


# --- books, mail, PDF ---


def epub(chapters: Sequence[str], title: str) -> bytes:
    """A book of chapters in XHTML."""
    items = "".join(f'<item id="c{at}" href="c{at}.xhtml"/>' for at in range(len(chapters)))
    spine = "".join(f'<itemref idref="c{at}"/>' for at in range(len(chapters)))
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": (
                '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
                '<rootfile full-path="book/package.opf"/></rootfiles></container>'
            ),
            "book/package.opf": (
                '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
                f"<dc:title>{escape(title)}</dc:title></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>"
            ),
            **{f"book/c{at}.xhtml": f"<html><body>{text}</body></html>" for at, text in enumerate(chapters)},
        }
    )


def eml(subject: str, text: str, attachments: Mapping[str, bytes | str]) -> bytes:
    """An e-mail; attachments that are strings are text."""
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, "Ada <ada@example.org>", "bob@example.org"
    message.set_content(text)
    message.add_alternative(f"<p>{escape(text)}</p>", subtype="html")
    for name, data in attachments.items():
        if isinstance(data, str):
            message.add_attachment(data, filename=name)
        else:
            message.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes()


def pdf(pages: Sequence[Sequence[str]], *, title: str = "", trailer: str = "", packed: bytes | None = None) -> bytes:
    """A PDF: on each page a large first line and small others. `packed` is a compressed stream for every page."""
    kids = " ".join(f"{5 + 2 * at} 0 R" for at in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        f"<</Title({title})>>".encode(),
    ]
    for at, lines in enumerate(pages):
        stream = packed if packed is not None else zlib.compress(page_text(lines))
        objects += [
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R>>"
            % (6 + 2 * at),
            b"<</Length %d/Filter/FlateDecode>>stream\n" % len(stream) + stream + b"\nendstream",
        ]
    return assembled(objects, trailer)


def page_text(lines: Sequence[str]) -> bytes:
    """The operators that show these lines."""
    shown = b"".join(
        b"(%s) Tj T* " % line.encode("cp1252").replace(b"(", b"\\(").replace(b")", b"\\)") for line in lines[1:]
    )
    first = lines[0].encode("cp1252")
    return b"BT /F1 24 Tf 72 740 Td (%s) Tj /F1 11 Tf 0 -40 Td 14 TL %sET" % (first, shown)


def assembled(objects: Sequence[bytes], trailer: str = "") -> bytes:
    """A PDF of these objects, the first of which is its catalog, the fourth its properties."""
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, data in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj" % number + data + b"endobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table
    out += f"trailer<</Size {len(objects) + 1}/Root 1 0 R/Info 4 0 R{trailer}>>\nstartxref\n{start}\n%%EOF".encode()
    return bytes(out)
