"""What must never come back into the source: servers of our own, and tensors read without `weights_only`.

One server there is: the page of `dream --play`, on this machine alone, which tests/test_dream_server.py holds to that.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("wm_rllib", "examples", "cluster") for path in sorted((ROOT / folder).rglob("*.py"))]
SERVERS = {"http.server", "socketserver", "flask", "uvicorn", "fastapi", "xmlrpc.server", "aiohttp.web"}
ALLOWED = {"wm_rllib/look/server.py": ["imports aiohttp.web"]}


def problems(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [module]
            names += [f"{module}.{a.name}" for a in node.names]
            yield from (f"imports {name}" for name in names if name in SERVERS)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load_state_dict_from_url"):
            safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
            if not safe:
                yield "torch.load without weights_only=True"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "0.0.0.0" in node.value:
            yield "listens on 0.0.0.0"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source_is_clean(path):
    assert list(problems(ast.parse(path.read_text()))) == ALLOWED.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "import http.server",
        "from aiohttp import web",
        "run(host='0.0.0.0')",
    ],
)
def test_mutant_is_found(text):
    assert list(problems(ast.parse(text)))
