#!/usr/bin/env python3
"""Executes docs/notebook.ipynb and compares what it prints with the outputs in the file; pictures are drawn and not compared.

    scripts/run_notebook.py [--write]        # --write: puts the new outputs into the file

Needs the wheel, matplotlib, nbclient and ipykernel.
"""

import pathlib
import sys

import nbclient
import nbformat

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"
# All outputs together, so that the repository stays small.
LARGEST = 200_000


def printed(notebook):
    """The text of every code cell's outputs."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        text = ""
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                text += "[picture]\n"
            else:
                text += output.get("text", "") or data.get("text/plain", "") + "\n"
        texts.append(text)
    return texts


def tidy(notebook):
    """Drops what differs from run to run, and the styles of messages on standard error."""
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                         "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.execution_count = None
            cell.execution_count = None


def main():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = printed(notebook)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    tidy(notebook)
    after = printed(notebook)
    if "--write" in sys.argv:
        text = nbformat.writes(notebook)
        assert len(text) < LARGEST, f"the notebook has {len(text)} bytes; draw smaller pictures"
        NOTEBOOK.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        return
    for number, (old, new) in enumerate(zip(before, after)):
        if old != new:
            sys.exit(f"code cell {number} printed\n{new}\ninstead of\n{old}")
    assert any("[picture]" in text for text in after) and len(before) == len(after)
    print(f"{NOTEBOOK.name}: {len(after)} cells ran and printed what the file has")


if __name__ == "__main__":
    main()
