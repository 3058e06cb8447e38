"""What the site has beside docs/: README.md as its first page, files that pages link to, and the reference.

The pages of the reference are made from the schema, the command line and the public names of the package.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")
NOTEBOOK = "tutorials/library.ipynb"


def source_of(page: str) -> str:
    """Return where in the repository a page of the site, or a file that it links to, lies."""
    if page == "index.md":
        return "README.md"
    return f"docs/{page}" if (ROOT / "docs" / page).exists() else page


def place_of(source: str) -> str:
    """Return where on the site a file of the repository lies; the reverse of `source_of`."""
    return "index.md" if source == "README.md" else source.removeprefix("docs/")


def links(page: str, text: str) -> list[str]:
    """Return the files of the repository that a page links to."""
    folder = posixpath.dirname(source_of(page))
    found = {posixpath.normpath(posixpath.join(folder, link)) for link in LINK.findall(text)}
    return sorted(name for name in found if (ROOT / name).is_file())


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and what pages link to outside docs/, and what that links to."""
    for name, text in made().items():
        files.append(File.generated(config, name, content=text))
    waiting = ["index.md", *(file.src_uri for file in files.documentation_pages())]
    while waiting:
        page = waiting.pop()
        if not (ROOT / source_of(page)).exists():
            continue
        for source in links(page, (ROOT / source_of(page)).read_text(encoding="utf-8")):
            place = place_of(source)
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
                if place.endswith(".md"):
                    waiting.append(place)
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_others: Any) -> str:
    """Point links where the site has what they name."""
    here = page.file.src_uri
    folder = posixpath.dirname(source_of(here))

    def moved(match: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(folder, match[1]))
        if not (ROOT / source).is_file():
            return match[1]
        return posixpath.relpath(place_of(source), posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)


def made() -> dict[str, str]:
    """Return the pages that no file has, by name."""
    return {
        "tutorials/notebook.md": "\n".join(notebook()),
        "reference/parameters.md": "\n".join(parameters()),
        "reference/commands.md": "\n".join(commands()),
        "reference/library.md": "\n".join(library()),
    }


def notebook() -> Iterator[str]:
    """Yield the cells of the notebook as a page."""
    for cell in json.loads((ROOT / "docs" / NOTEBOOK).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        yield ""
    yield f"[The notebook itself]({posixpath.basename(NOTEBOOK)})"


def parameters() -> Iterator[str]:
    """Yield the tables of parameters, one for each group of the schema."""
    from n4flow.pipeline.parameters import expectation, groups

    yield "# Parameters\n"
    yield "They are the same for the workflow (`--smooth_z 3`), for `n4flow run` (`--smooth-z 3`) and in Python"
    yield "(`n4flow.run(..., smooth_z=3)`). Where a default is a dash, the last column says what happens without it."
    for group in groups():
        yield f"\n## {group['title']}\n\n{group['description']}\n"
        yield "| parameter | takes | default | meaning |\n|---|---|---|---|"
        for name, rule in group["properties"].items():
            usual = rule.get("usual", rule.get("default"))
            default = "–" if usual is None else f"`{str(usual).lower()}`"
            only = " Of the workflow alone." if rule.get("workflow") else ""
            yield f"| `{name}` | {expectation(rule)} | {default} | {rule['description']}{only} |"


def commands() -> Iterator[str]:
    """Yield what `--help` says of each command that is for people."""
    import typer.main

    from n4flow.commands import USER_COMMANDS, app

    group: Any = typer.main.get_command(app)
    yield "# Commands\n"
    yield "What `n4flow COMMAND --help` says. The steps that the workflow's tasks call have their own `--help`."
    with typer.Context(group, info_name="n4flow", terminal_width=110, max_content_width=110) as outer:
        for name in USER_COMMANDS:
            command = group.get_command(outer, name)
            with typer.Context(command, info_name=name, parent=outer) as context:
                yield f"\n## {name}\n\n```text\n{command.get_help(context)}\n```"


def library() -> Iterator[str]:
    """Yield the public names of the package, for mkdocstrings to describe, and the options of a phantom."""
    import n4flow

    yield "# Library\n\nEverything that `import n4flow` offers, from its docstrings. Axes are always (Z, Y, X)."
    for name in n4flow.__all__:
        if name != "__version__":
            yield f"\n::: n4flow.{n4flow._HOME[name]}.{name}"
        if name == "PhantomOptions":  # its docstring is made of its fields when it is imported
            yield "\n| option | default | meaning |\n|---|---|---|"
            for option in fields(n4flow.PhantomOptions):
                yield f"| `{option.name}` | `{option.default}` | {option.metadata['help']} |"
