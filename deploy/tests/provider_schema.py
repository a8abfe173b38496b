"""The google provider's schema, read from the type declarations of the npm package @cdktf/provider-google.

The provider itself comes from a registry of its own; the declarations are generated from its schema and say the same:
which arguments and blocks there are, which of them are required, which blocks may be repeated.
"""

import dataclasses
import functools
import pathlib
import re

INTERFACE = re.compile(r"export interface (\w+)[^{\n]*\{\n(.*?)\n\}", re.S)
PROPERTY = re.compile(r"/\*\*(.*?)\*/\s*readonly (\w+)(\??): (.*?);\n", re.S)
ANCHOR = re.compile(r"#(\w+) \w+#\w+\}")
ATTRIBUTE = re.compile(r"""get\w*Attribute\(["'](\w+)["']\)|\(this, ["'](\w+)["']""")


@dataclasses.dataclass(frozen=True)
class Argument:
    required: bool
    type: str


@dataclasses.dataclass(frozen=True)
class Block:
    required: bool
    repeated: bool
    body: "Body"


@dataclasses.dataclass(frozen=True)
class Body:
    arguments: dict
    blocks: dict


@dataclasses.dataclass(frozen=True)
class Resource:
    body: Body
    # What can be read of it: its arguments, and what the provider computes.
    attributes: frozenset


class Provider:
    def __init__(self, package):
        self.lib = pathlib.Path(package) / "lib"
        if not self.lib.is_dir():
            raise FileNotFoundError(f"{self.lib} is not there: npm ci in deploy/tests")

    @functools.cache
    def version(self):
        declarations = (self.lib / "provider/index.d.ts").read_text()
        return re.search(r"/hashicorp/google/([0-9.]+)/docs", declarations).group(1)

    @functools.cache
    def find(self, kind, name):
        """The resource or data source of that name, or None."""
        folder = self.lib / (("data-" if kind == "data" else "") + name.replace("_", "-"))
        if kind == "resource":
            folder = self.lib / name.removeprefix("google_").replace("_", "-")
        if not name.startswith("google_") or not folder.is_dir():
            return None
        interfaces = dict(INTERFACE.findall((folder / "index.d.ts").read_text()))
        config = next(
            name for name in interfaces if name.endswith("Config") and "TerraformMeta" in self.head(folder, name)
        )
        body = read_body(interfaces, config)
        computed = {first or second for first, second in ATTRIBUTE.findall((folder / "index.js").read_text())}
        return Resource(body, frozenset(computed | set(body.arguments) | set(body.blocks) | {"id"}))

    def head(self, folder, name):
        return re.search(rf"export interface {name}\b[^{{]*", (folder / "index.d.ts").read_text()).group(0)


def read_body(interfaces, name):
    arguments, blocks = {}, {}
    for comment, property_name, optional, type_ in PROPERTY.findall(interfaces[name] + "\n"):
        anchor = ANCHOR.search(comment)
        if not anchor:
            raise ValueError(f"{name}.{property_name} has no link to its documentation")
        terraform_name = anchor.group(1)
        base = type_.split("[")[0].split(" ")[0]
        # Some attributes are objects; only of a block do the comments say that it is one.
        if base in interfaces and re.search(rf"^\s*\*\s*{terraform_name} block\s*$", comment, re.M):
            blocks[terraform_name] = Block(not optional, "[]" in type_, read_body(interfaces, base))
        else:
            arguments[terraform_name] = Argument(not optional, " ".join(type_.split()))
    return Body(arguments, blocks)
