"""The repository's address, written once: [project.urls] Repository in pyproject.toml.

python docs/address.py           write it into every link, and give each notebook its badge
python docs/address.py --check   list the files where it is missing or differs; exit 1 if any
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"
LINK = re.compile(
    r"(https://github\.com/|colab\.research\.google\.com/github/)[\w.-]+/azllm-lightning\b"
)
SITE = re.compile(r"https://[\w-]+\.github\.io/azllm-lightning\b")
BADGE = re.compile(r"^\[!\[Open in Colab\][^\n]*\n+")
PIP = re.compile(r"^(\s*[!%]pip install (?:-q )?).*$", re.MULTILINE)


def address() -> str:
    """The address in pyproject.toml, by a pattern, since Python 3.10 has no TOML parser."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(
        r'^Repository = "(https://github\.com/[\w.-]+/azllm-lightning)"', text, re.MULTILINE
    )
    assert found, 'pyproject.toml: expected Repository = "https://github.com/OWNER/azllm-lightning"'
    return found[1]


def owner_and_name() -> str:
    """OWNER/azllm-lightning."""
    return address().removeprefix("https://github.com/")


def with_address(text: str) -> str:
    """`text` with the address in every link to the repository, to Colab and to the docs."""
    owner = owner_and_name().partition("/")[0]
    text = SITE.sub(f"https://{owner}.github.io/azllm-lightning", text)
    return LINK.sub(lambda match: match[1] + owner_and_name(), text)


def with_badge(name: str, text: str) -> str:
    """The notebook `name`, whose JSON is `text`, with an "Open in Colab" badge and its pip cell."""
    notebook = json.loads(with_address(text))
    first, install = notebook["cells"][:2]
    target = f"https://colab.research.google.com/github/{owner_and_name()}/blob/{BRANCH}/notebooks/{name}"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})\n\n"
    first["source"] = (badge + BADGE.sub("", "".join(first["source"]))).splitlines(keepends=True)
    pip = PIP.sub(rf"\1git+{address()}", "".join(install["source"]))
    install["source"] = pip.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """What each file that names the repository should hold, by path."""
    wanted = {}
    for pattern in (
        "*.md",
        "*.cff",
        "pyproject.toml",
        ".github/**/*.yml",
        ".github/**/*.md",
        "docs/**/*.md",
        "benchmarks/*.md",
    ):
        for path in ROOT.glob(pattern):
            wanted[path] = with_address(path.read_text(encoding="utf-8"))
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        wanted[path] = with_badge(path.name, path.read_text(encoding="utf-8"))
    return wanted


def main() -> None:
    """Write or check every file."""
    different = {
        path: text for path, text in files().items() if path.read_text(encoding="utf-8") != text
    }
    if "--check" in sys.argv[1:]:
        for path in different:
            print(f"{path.relative_to(ROOT)}: run python docs/address.py")
        sys.exit(bool(different))
    for path, text in different.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
