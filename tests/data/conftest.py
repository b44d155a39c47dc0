"""A tiny WordPiece tokenizer and hand-written task folders."""

import gzip
import json

import pytest

from fusion_jax.data.tokenise import load_tokenizer

WORDS = """a b c d e f g h i j ada bo the cat dog sat on mat ran home rain sun is who
where what kettle red blue green ent or , . ? ! : * @ ' - x y z 0 1 2 3 4""".split()
PIECES = ["##s", "##ing", "##0", "##1", "##2", "##ed", "##t", "##a"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture
def make_folder(tmp_path):
    """Writes a folder: file name -> rows, JSON value, or text, by its ending."""

    def make(files, name="toy"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file, content in files.items():
            path = folder / file
            if not isinstance(content, str):
                lines = ".jsonl" in file
                content = (
                    "".join(json.dumps(row) + "\n" for row in content)
                    if lines
                    else json.dumps(content)
                )
            if path.suffix == ".gz":
                path.write_bytes(gzip.compress(content.encode()))
            else:
                path.write_text(content, encoding="utf-8")
        return folder

    return make
