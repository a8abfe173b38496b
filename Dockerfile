# The production image: the service without the embedded cloud, as a user without rights, on a base without a shell.
# Builds for linux/amd64 and linux/arm64: docker buildx build --platform linux/amd64,linux/arm64 .

# Other bases can be given: --build-arg BUILD_IMAGE=… --build-arg BASE_IMAGE=…
ARG BUILD_IMAGE=rust
ARG BASE_IMAGE=base

FROM docker.io/library/rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS rust
FROM gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f AS base

FROM ${BUILD_IMAGE} AS build
# aws-lc, the TLS and signing library, is C.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# Dependencies first, against an empty program, so that a change of the source does not build them again. Cargo wants
# every target that Cargo.toml names to be there, whether it is built or not.
COPY Cargo.toml Cargo.lock ./
COPY .cargo/config.toml .cargo/config.toml
RUN mkdir -p src tests/it benches/load benches/performance \
    && echo 'fn main() {}' | tee src/main.rs tests/it/main.rs benches/pieces.rs benches/load/main.rs > benches/performance/main.rs \
    && touch src/lib.rs README.md \
    && cargo build --release --locked --no-default-features \
    && rm -r src

COPY src src
# Copied files may be older than what was just built from the empty ones.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --no-default-features

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="runner-manager" \
      org.opencontainers.image.description="Starts and stops the Compute Engine VMs behind GitHub Actions self-hosted runners" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /src/target/release/runner-manager /usr/local/bin/runner-manager
# Numeric, so that a runtime can tell that it is not root.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/runner-manager"]
