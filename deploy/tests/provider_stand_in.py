"""Stands in for the providers, so that Terraform itself can validate, plan and apply without Google.

Each has the schema of provider_schema.py, and nothing behind it: what it is told to create is created, and what a real
provider computes is made up. Terraform checks the rest as ever: types, references, conditions, and that nothing of what
is write-only or ephemeral is kept. A test can have a creation fail.

They are reached by TF_REATTACH_PROVIDERS, Terraform's own way to use providers that are already running.
"""

import concurrent.futures
import json
import os
import pathlib
import secrets
import tempfile

import grpc
import msgpack
from provider_schema import Provider
from tf.gen import grpc_controller_pb2 as controller
from tf.gen import grpc_controller_pb2_grpc as controller_grpc
from tf.gen import grpc_stdio_pb2_grpc as stdio_grpc
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as pb_grpc

UNKNOWN = msgpack.ExtType(0, b"\x00")

# The protocol's field `write_only`, number 11, which is newer than the generated classes.
WRITE_ONLY = b"\x58\x01"

# Arguments that the provider computes unless they are given, of those that the modules read: the declarations do not
# say.
COMPUTED_IF_ABSENT = {("google_compute_address", "address")}

# Google's answers, where the modules use them.
ANSWERS = {
    ("google_project", "number"): "123456789012",
    ("google_secret_manager_secret_version_access", "secret_data"): "the-value-in-secret-manager",
    ("google_secret_manager_secret_version", "version"): "1",
}


def type_of(declaration):
    """A type of the declarations, as Terraform's protocol spells it."""
    declaration = declaration.replace("| cdktn.IResolvable", "").strip("() ")
    simple = {"string": "string", "number": "number", "boolean": "bool", "string[]": ["list", "string"]}
    simple |= {"number[]": ["list", "number"], "{ [key: string]: string; }": ["map", "string"]}
    return simple.get(declaration, "dynamic")


def attribute(name, type_, **how):
    made = pb.Schema.Attribute(name=name, type=json.dumps(type_).encode(), **how)
    if name.endswith("_wo"):
        return pb.Schema.Attribute.FromString(made.SerializeToString() + WRITE_ONLY)
    return made


def block_of(body, computed=()):
    attributes = [
        attribute(
            name,
            type_of(its.type),
            required=its.required,
            optional=not its.required,
            computed=not its.required and not name.endswith("_wo"),
        )
        for name, its in body.arguments.items()
    ]
    attributes += [attribute(name, type_, computed=True) for name, type_ in computed]
    nested = [
        pb.Schema.NestedBlock(
            type_name=name,
            block=block_of(its.body),
            nesting="SINGLE" if name == "timeouts" else "LIST",
            min_items=1 if its.required else 0,
            max_items=0 if its.repeated or name == "timeouts" else 1,
        )
        for name, its in body.blocks.items()
    ]
    return pb.Schema.Block(attributes=attributes, block_types=nested)


def field(number, content):
    """A field of the protocol that is newer than the generated classes; its number is below 16."""
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


class StandIn(pb_grpc.ProviderServicer):
    """Keeps no state: what is, is what Terraform remembers."""

    def __init__(self, provider, types):
        self.resources = {
            (kind, type_): provider.find(kind, type_) for kind, type_ in types if type_.startswith(f"{provider.name}_")
        }
        # The error of the next creation, by type.
        self.failures = {}
        # Values of write-only arguments, as they came.
        self.written = []

    def computed(self, kind, type_):
        resource = self.resources[kind, type_]
        known = set(resource.body.arguments) | set(resource.body.blocks)
        return [(name, "string") for name in sorted(resource.attributes - known)]

    # -- what there is ---------------------------------------------------------------------------------------------

    def GetProviderSchema(self, request, context):
        schemas = {kind: {} for kind in ("resource", "data", "ephemeral")}
        for (kind, type_), resource in self.resources.items():
            schemas[kind][type_] = pb.Schema(block=block_of(resource.body, self.computed(kind, type_)))
        settings = [attribute(name, "string", optional=True) for name in ("project", "region", "zone")]
        response = pb.GetProviderSchema.Response(
            provider=pb.Schema(block=pb.Schema.Block(attributes=settings)),
            resource_schemas=schemas["resource"],
            data_source_schemas=schemas["data"],
        )
        ephemeral = [
            field(8, field(1, name.encode()) + field(2, schema.SerializeToString()))
            for name, schema in schemas["ephemeral"].items()
        ]
        return pb.GetProviderSchema.Response.FromString(response.SerializeToString() + b"".join(ephemeral))

    def ValidateProviderConfig(self, request, context):
        return pb.ValidateProviderConfig.Response()

    def ConfigureProvider(self, request, context):
        return pb.ConfigureProvider.Response()

    def ValidateResourceConfig(self, request, context):
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request, context):
        return pb.ValidateDataResourceConfig.Response()

    def StopProvider(self, request, context):
        return pb.StopProvider.Response()

    # -- what is done ----------------------------------------------------------------------------------------------

    def PlanResourceChange(self, request, context):
        planned, prior = unpack(request.proposed_new_state), unpack(request.prior_state)
        if planned is not None and prior is None:
            for name in planned:
                if planned[name] is None and self.is_computed(request.type_name, name):
                    planned[name] = UNKNOWN
        return pb.PlanResourceChange.Response(planned_state=pack(without_write_only(planned)), legacy_type_system=True)

    def is_computed(self, type_, name):
        return (type_, name) in COMPUTED_IF_ABSENT or name in dict(self.computed("resource", type_)) or name == "id"

    def ApplyResourceChange(self, request, context):
        planned, prior = unpack(request.planned_state), unpack(request.prior_state)
        if planned is None and request.type_name == "google_cloud_run_v2_service" and prior["deletion_protection"]:
            # As the provider has it: what counts is the state, not the configuration.
            text = "cannot destroy service without setting deletion_protection=false and running `terraform apply`"
            return pb.ApplyResourceChange.Response(new_state=request.prior_state, diagnostics=[error(text)])
        config = unpack(request.config) or {}
        self.written += [value for name, value in config.items() if name.endswith("_wo") and value is not None]
        if planned is not None:
            planned = {
                name: made_up(request.type_name, name, planned) if value == UNKNOWN else value
                for name, value in planned.items()
            }
        failure = self.failures.pop(request.type_name, None) if prior is None else None
        return pb.ApplyResourceChange.Response(
            new_state=pack(without_write_only(planned)),
            diagnostics=[error(failure)] if failure else [],
            legacy_type_system=True,
        )

    def ReadResource(self, request, context):
        return pb.ReadResource.Response(new_state=request.current_state)

    def UpgradeResourceState(self, request, context):
        return pb.UpgradeResourceState.Response(upgraded_state=pb.DynamicValue(json=request.raw_state.json))

    def ReadDataSource(self, request, context):
        config = unpack(request.config)
        state = {
            name: made_up(request.type_name, name, config)
            if value is None and (request.type_name, name) in ANSWERS
            else value
            for name, value in config.items()
        }
        return pb.ReadDataSource.Response(state=pack(state))


    # -- ephemeral resources: the messages have the fields of a data source's ------------------------------------------

    def open_ephemeral(self, request, context):
        request = pb.ReadDataSource.Request.FromString(request)
        values = {
            name: secrets.token_hex(16) if value is None and name == "result" else value
            for name, value in unpack(request.config).items()
        }
        return field(3, pack(values).SerializeToString())

    def nothing(self, request, context):
        return b""

    def newer_methods(self):
        methods = {"OpenEphemeralResource": self.open_ephemeral}
        methods |= {f"{name}EphemeralResource": self.nothing for name in ("Close", "Renew")}
        methods["ValidateEphemeralResourceConfig"] = self.nothing
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        return grpc.method_handlers_generic_handler("tfplugin6.Provider", handlers)


def error(text):
    return pb.Diagnostic(severity=pb.Diagnostic.ERROR, summary=text)


def made_up(type_, name, values):
    named = next(
        (values[key] for key in ("name", "account_id", "secret_id", "role_id") if isinstance(values.get(key), str)),
        type_,
    )
    return ANSWERS.get((type_, name), f"{name}-of-{named}")


def without_write_only(values):
    return values and {name: None if name.endswith("_wo") else value for name, value in values.items()}


def unpack(value):
    return (
        msgpack.unpackb(value.msgpack, ext_hook=msgpack.ExtType, strict_map_key=False)
        if value.msgpack
        else json.loads(value.json or b"null")
    )


def pack(value):
    return pb.DynamicValue(msgpack=msgpack.packb(value))


class Controller(controller_grpc.GRPCControllerServicer):
    def Shutdown(self, request, context):
        return controller.Empty()


class Stdio(stdio_grpc.GRPCStdioServicer):
    def StreamStdio(self, request, context):
        return iter([])


class Running:
    """Stand-ins for the providers of these packages, listening; `environment` leads Terraform to them."""

    def __init__(self, packages, types):
        self.directory = tempfile.TemporaryDirectory()
        self.servers, self.providers, attached = [], {}, {}
        for package in packages:
            provider = Provider(package)
            self.providers[provider.name] = stand_in = StandIn(provider, types)
            socket = pathlib.Path(self.directory.name) / f"{provider.name}.sock"
            server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
            server.add_generic_rpc_handlers([stand_in.newer_methods()])
            pb_grpc.add_ProviderServicer_to_server(stand_in, server)
            controller_grpc.add_GRPCControllerServicer_to_server(Controller(), server)
            stdio_grpc.add_GRPCStdioServicer_to_server(Stdio(), server)
            server.add_insecure_port(f"unix://{socket}")
            server.start()
            self.servers.append(server)
            address = {"Network": "unix", "String": str(socket)}
            attached[f"registry.terraform.io/hashicorp/{provider.name}"] = {
                "Protocol": "grpc",
                "ProtocolVersion": 6,
                "Pid": os.getpid(),
                "Test": True,
                "Addr": address,
            }
        self.environment = {"TF_REATTACH_PROVIDERS": json.dumps(attached)}

    def close(self):
        for server in self.servers:
            server.stop(grace=None).wait()
        self.directory.cleanup()
