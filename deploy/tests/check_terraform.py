#!/usr/bin/env python3
"""Holds Terraform files against the schemas of their providers, and modules against each other.

    check_terraform.py PROVIDER[,PROVIDER...] DIRECTORY...

For each resource and data source: does it exist, does it have these arguments and blocks, is nothing missing that is
required, may a block be there twice. For each reference: is there such a variable, local, module output, resource or
attribute. For each module call: does it give the variables that the module has and needs. What Terraform alone can
tell (types of expressions, values) it does not.
"""

import pathlib
import re
import sys

import hcl2
from provider_schema import Provider

META = {"count", "for_each", "depends_on", "provider", "lifecycle"}
MODULE_META = META | {"source", "version", "providers"}
REFERENCE = re.compile(
    r"""(?<![\w.-])(?:
        (?P<scope>var|local|module)\.(?P<name>\w+)(?:\[[^\]]*\])?(?:\.(?P<output>\w+))?
      | (?P<kind>data\.|ephemeral\.)?(?P<type>(?:google|random|time)_\w+)\.(?P<resource>\w+)(?P<index>\[[^\]]*\])?(?:\.(?P<attribute>\w+))?
    )""",
    re.X,
)


def unquote(text):
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def is_block(value):
    return isinstance(value, dict) and "__is_block__" in value


def strings(value):
    """Every expression and text below it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


class Module:
    """A directory of Terraform files."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.variables, self.locals, self.outputs, self.calls, self.resources = {}, {}, {}, {}, {}
        self.documents = []
        for file in sorted(self.directory.glob("*.tf")):
            with file.open() as text:
                document = hcl2.load(text, serialization_options=hcl2.SerializationOptions(with_comments=False))
            self.documents.append(document)
            for kind, into in (("variable", self.variables), ("output", self.outputs), ("module", self.calls)):
                for block in document.get(kind, []):
                    into |= {unquote(name): body for name, body in block.items()}
            for block in document.get("locals", []):
                self.locals |= {name: body for name, body in block.items() if name != "__is_block__"}
            for kind in ("resource", "data", "ephemeral"):
                for block in document.get(kind, []):
                    for type_, named in block.items():
                        for name, body in named.items():
                            self.resources[kind, unquote(type_), unquote(name)] = body
        if not self.documents:
            raise FileNotFoundError(f"{directory} has no Terraform files")


class Check:
    def __init__(self, providers, directories):
        self.providers = {provider.name: provider for provider in providers}
        self.modules = {pathlib.Path(each).resolve(): Module(each) for each in directories}
        self.problems = []
        self.checked = 0

    def run(self):
        for module in self.modules.values():
            for (kind, type_, name), body in module.resources.items():
                self.resource(module, kind, type_, name, body)
            for name, body in module.calls.items():
                self.call(module, name, body)
            self.references(module)
        return self.problems

    def find(self, kind, type_):
        provider = self.providers.get(type_.split("_", 1)[0])
        return provider and provider.find(kind, type_)

    def problem(self, module, where, text):
        self.problems.append(f"{module.directory}: {where}: {text}")

    def resource(self, module, kind, type_, name, body):
        where = f"{'' if kind == 'resource' else kind + '.'}{type_}.{name}"
        schema = self.find(kind, type_)
        if schema is None:
            return self.problem(module, where, f"the provider has no such {kind}")
        self.checked += 1
        self.body(module, where, body, schema.body, META)

    def body(self, module, where, body, schema, meta=frozenset()):
        given = set()
        for name, value in body.items():
            if name == "__is_block__" or name in meta:
                continue
            if name == "dynamic":
                for label, its in ((unquote(label), its) for each in value for label, its in each.items()):
                    given.add(label)
                    self.block(module, where, label, its["content"], schema, may_repeat=True)
                continue
            blocks = [each for each in value if is_block(each)] if isinstance(value, list) else []
            if blocks:
                given.add(name)
                self.block(module, where, name, blocks, schema)
            else:
                given.add(name)
                self.argument(module, where, name, schema)
        for name, argument in schema.arguments.items():
            if argument.required and name not in given:
                self.problem(module, where, f"the argument {name} is required")
        for name, block in schema.blocks.items():
            if block.required and name not in given:
                self.problem(module, where, f"the block {name} is required")

    def argument(self, module, where, name, schema):
        self.checked += 1
        if name in schema.blocks:
            self.problem(module, where, f"{name} is a block, not an argument")
        elif name not in schema.arguments:
            self.problem(module, where, f"there is no argument {name}")

    def block(self, module, where, name, blocks, schema, may_repeat=False):
        self.checked += 1
        if name in schema.arguments:
            return self.problem(module, where, f"{name} is an argument, not a block")
        if name not in schema.blocks:
            return self.problem(module, where, f"there is no block {name}")
        if len(blocks) > 1 and not schema.blocks[name].repeated and not may_repeat:
            self.problem(module, where, f"the block {name} may be there once")
        for each in blocks:
            self.body(module, f"{where}.{name}", each, schema.blocks[name].body)

    def call(self, module, name, body):
        where = f"module.{name}"
        called = self.called(module, body)
        if called is None:
            return self.problem(
                module, where, f"its source {body.get('source')} is not among the directories that are checked"
            )
        given = {key for key in body if key != "__is_block__"} - MODULE_META
        for each in sorted(given - set(called.variables)):
            self.problem(module, where, f"the module has no variable {each}")
        required = {variable for variable, its in called.variables.items() if "default" not in its}
        for each in sorted(required - given):
            self.problem(module, where, f"the module needs the variable {each}")
        self.checked += len(given)

    def called(self, module, body):
        return self.modules.get((module.directory / unquote(body["source"])).resolve())

    def references(self, module):
        seen = set()
        # Blocks about resources of earlier versions name resources that are gone.
        documents = [
            {kind: each for kind, each in document.items() if kind not in ("moved", "removed")}
            for document in module.documents
        ]
        for text in strings(documents):
            # A description is text, not an expression.
            for match in REFERENCE.finditer(text) if "${" in text or "%{" in text else ():
                self.checked += 1
                seen.add((match["scope"], match["name"]))
                problem = self.reference(module, match)
                if problem:
                    self.problem(module, match.group(0), problem)
        for kind, scope in (("variables", "var"), ("locals", "local")):
            for name in sorted(set(getattr(module, kind)) - {name for where, name in seen if where == scope}):
                self.problem(module, f"{scope}.{name}", "it is never used")

    def reference(self, module, match):
        name, output, attribute = match["name"], match["output"], match["attribute"]
        if match["scope"] == "var":
            return None if name in module.variables else "there is no such variable"
        if match["scope"] == "local":
            return None if name in module.locals else "there is no such local"
        if match["scope"] == "module":
            if name not in module.calls:
                return "no such module is called"
            called = self.called(module, module.calls[name])
            return None if not called or not output or output in called.outputs else "the module has no such output"
        kind = (match["kind"] or "resource").rstrip(".")
        body = module.resources.get((kind, match["type"], match["resource"]))
        if body is None:
            return f"there is no such {kind} here"
        if attribute and ("count" in body or "for_each" in body) != bool(match["index"]):
            return "it needs an index, or has none"
        schema = self.find(kind, match["type"])
        if schema and attribute and attribute not in schema.attributes:
            return f"it has no attribute {attribute}"
        return None


def main():
    packages, *directories = sys.argv[1:]
    check = Check([Provider(package) for package in packages.split(",")], directories)
    problems = check.run()
    for problem in problems:
        print(problem, file=sys.stderr)
    state = f"{len(problems)} problems" if problems else "no problems"
    print(
        f"google provider {check.providers['google'].version}: {check.checked} things checked in {len(directories)} "
        f"directories, {state}"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
