#!/usr/bin/env python3
"""Writes the second half of each module's README from its files, in the shape that terraform-docs gives it.

    module_readme.py            writes it
    module_readme.py --check    fails if a README says something else
"""

import pathlib
import re
import sys
import textwrap

MODULES = sorted(pathlib.Path(__file__).parents[1].glob("terraform/*/"))
BEGIN, END = "<!-- BEGIN_TF_DOCS -->", "<!-- END_TF_DOCS -->"


def blocks(module, kind):
    """Name and body of each block of that kind, by name. The files are formatted, so a block ends with its own line."""
    found = {}
    for file in sorted(module.glob("*.tf")):
        for name, body in re.findall(rf'^{kind} "(\w+)" {{\n(.*?)^}}\n', file.read_text(), re.M | re.S):
            found[name] = body
    return sorted(found.items())


def argument(body, name):
    """An argument's expression, or None."""
    lines = body.split("\n")
    for start, line in enumerate(lines):
        if match := re.match(rf"  {name} += (.*)", line):
            taken = [match.group(1)]
            if re.search(r"[({\[]$", taken[0]):
                for following in lines[start + 1 :]:
                    taken.append(following)
                    if re.match(r"  [)}\]]", following):
                        break
            return "\n".join([taken[0], *(each.removeprefix("  ") for each in taken[1:])])
    return None


def description(body):
    if heredoc := re.search(r"^  description = <<-EOT\n(.*?)^  EOT$", body, re.M | re.S):
        return textwrap.dedent(heredoc.group(1)).rstrip()
    text = re.search(r'^  description = "(.*)"$', body, re.M).group(1)
    return text.replace('\\"', '"').replace("$${", "${").strip()


def cell(text):
    """Text in a table's cell, with its line breaks."""
    if "\n" in text:
        return "<pre>" + text.replace("|", "\\|").replace("\n", "<br/>") + "</pre>"
    return text.replace("|", "\\|")


def code(text):
    return cell(text) if "\n" in text else f"`{text.replace('|', chr(92) + '|')}`"


def generated(module):
    versions = (module / "versions.tf").read_text()
    lines = ["## Requirements", "", "| Name | Version |", "|------|---------|"]
    terraform = re.search(r'required_version = "(.*)"', versions).group(1)
    lines.append(f"| terraform | {terraform} |")
    for name, version in re.findall(r'(\w+) = {\n\s+source\s+= "[^"]*"\n\s+version = "([^"]*)"', versions):
        lines.append(f"| {name} | {version} |")
    lines += ["", "## Resources", "", "| Name | Type |", "|------|------|"]
    for file in sorted(module.glob("*.tf")):
        for kind, type_, name in re.findall(r'^(resource|data|ephemeral) "(\w+)" "(\w+)"', file.read_text(), re.M):
            lines.append(f"| {type_}.{name} | {'data source' if kind == 'data' else kind} |")
    lines[lines.index("|------|------|") + 1 :] = sorted(lines[lines.index("|------|------|") + 1 :])
    lines += ["", "## Inputs", "", "| Name | Description | Type | Default | Required |"]
    lines.append("|------|-------------|------|---------|:--------:|")
    for name, body in blocks(module, "variable"):
        default = argument(body, "default")
        row = [name, cell(description(body)), code(argument(body, "type"))]
        row += ["n/a", "yes"] if default is None else [code(default), "no"]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "## Outputs", "", "| Name | Description |", "|------|-------------|"]
    for name, body in blocks(module, "output"):
        lines.append(f"| {name} | {cell(description(body))} |")
    return "\n".join([BEGIN, *lines, END]) + "\n"


def main():
    wrong = []
    for module in MODULES:
        file = module / "README.md"
        text = file.read_text()
        renewed = text[: text.index(BEGIN)] + generated(module)
        if renewed != text:
            wrong.append(str(file))
            if "--check" not in sys.argv:
                file.write_text(renewed)
    if wrong and "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(wrong)}: run {sys.argv[0]}")


if __name__ == "__main__":
    main()
