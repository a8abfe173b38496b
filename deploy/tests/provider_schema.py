"""A provider's schema, read from type declarations that are generated from it (see fetch_providers.py).

The provider itself comes from a registry of its own; the declarations say the same: which arguments and blocks there
are, which of them are required, which blocks may be repeated.
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
    # Readable names: its arguments, and the values that the provider computes.
    attributes: frozenset


# The declarations have no ephemeral resources. This one is as random 3.7 documents it.
EPHEMERAL = {
    ("ephemeral", "random_password"): Resource(
        Body({"length": Argument(True, "number"), "special": Argument(False, "boolean | cdktn.IResolvable")}, {}),
        frozenset({"length", "special", "result", "bcrypt_hash"}),
    )
}


class Provider:
    def __init__(self, package):
        self.lib = pathlib.Path(package) / "lib"
        if not self.lib.is_dir():
            raise FileNotFoundError(f"{self.lib} is not there: fetch_providers.py")
        declarations = (self.lib / "provider/index.d.ts").read_text()
        self.name, self.version = re.search(r"/hashicorp/(\w+)/([0-9.]+)/docs", declarations).groups()

    @functools.cache
    def find(self, kind, name):
        """The resource, data source or ephemeral resource of that name, or None."""
        if (kind, name) in EPHEMERAL:
            return EPHEMERAL[kind, name]
        folder = self.lib / ("data-" + name.replace("_", "-"))
        if kind == "resource":
            folder = self.lib / name.removeprefix(f"{self.name}_").replace("_", "-")
        if kind == "ephemeral" or not name.startswith(f"{self.name}_") or not folder.is_dir():
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
