# syntax=docker/dockerfile:1
# check=error=true

# docker buildx build --platform=linux/amd64,linux/arm64 .
#
# The compiler runs natively and cross-compiles: emulating the other processor takes many times longer. Each platform has
# a stage below with its Rust target and its linker; the build fails for any other platform.
FROM --platform=$BUILDPLATFORM rust:1.95-slim-bookworm AS toolchain
WORKDIR /src
ARG BUILDARCH
ARG TARGETARCH
# `make` is for jemalloc; the C compiler that it and aws-lc need is the image's, or one for the other platform.
RUN set -eu; \
    set -- make; \
    case "$BUILDARCH $TARGETARCH" in \
      "amd64 arm64") set -- "$@" gcc-aarch64-linux-gnu libc6-dev-arm64-cross ;; \
      "arm64 amd64") set -- "$@" gcc-x86-64-linux-gnu libc6-dev-amd64-cross ;; \
    esac; \
    apt-get update; \
    apt-get install -y --no-install-recommends "$@"; \
    rm -rf /var/lib/apt/lists/*

FROM toolchain AS toolchain-amd64
ENV CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    OBJCOPY=x86_64-linux-gnu-objcopy

FROM toolchain AS toolchain-arm64
# jemalloc fixes the page size when it is built, and aborts on a kernel with larger pages. arm64 kernels have pages of
# 4, 16 or 64 KiB; 2^16 runs on all of them.
ENV CARGO_BUILD_TARGET=aarch64-unknown-linux-gnu \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    OBJCOPY=aarch64-linux-gnu-objcopy \
    AARCH64_UNKNOWN_LINUX_GNU_JEMALLOC_SYS_WITH_LG_PAGE=16

# A stage of this file, so it has no tag.
# hadolint ignore=DL3006
FROM toolchain-${TARGETARCH} AS build
ARG TARGETARCH
RUN rustup target add "$CARGO_BUILD_TARGET"
# All of the context: .dockerignore lists what belongs to it.
COPY . /src/
# The commit that `kube-bastion version` prints; the repository is not in the context.
ARG REVISION=unknown
ENV KUBE_BASTION_COMMIT=${REVISION}
# The caches outlive a build, so a change in src/ compiles only that; a target folder per platform, as cargo locks it.
#
# The line tables are four fifths of the binary. They move to a file of their own, which backtraces find by the name
# that the binary keeps. Its symbols stay, so that a backtrace of the image names functions.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/usr/local/cargo/git \
    --mount=type=cache,id=kube-bastion-target-${TARGETARCH},target=/src/target \
    cargo build --release --locked --bin kube-bastion && \
    cp "target/$CARGO_BUILD_TARGET/release/kube-bastion" /kube-bastion && \
    "$OBJCOPY" --only-keep-debug /kube-bastion /kube-bastion.debug && \
    "$OBJCOPY" --strip-debug --add-gnu-debuglink=/kube-bastion.debug /kube-bastion

# The debug information of the image's binary (make image-debug).
FROM scratch AS debug
COPY --from=build /kube-bastion.debug /

# glibc and libgcc of the same Debian as the build's, CA certificates, no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kube-bastion" \
      org.opencontainers.image.description="Standalone implementation of the Kubernetes API server's proxy subresource" \
      org.opencontainers.image.source="https://github.com/kube-bastion/kube-bastion" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /kube-bastion /kube-bastion
# By number, which is what runAsNonRoot can check.
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/kube-bastion"]
CMD ["serve"]
