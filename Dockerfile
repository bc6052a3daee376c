# The gateway, its command line and the fake provider in one small image: `sark-mw` is the entrypoint.
FROM python:3.13.5-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/sark
COPY pyproject.toml README.md ./
COPY sark_mw ./sark_mw
COPY lua ./lua
COPY plugins ./plugins
RUN /opt/sark/bin/pip install --no-cache-dir ".[all]"

FROM python:3.13.5-slim-bookworm
# A fixed id, so that volumes and tmpfs mounts can name their owner.
RUN groupadd --gid 10001 sark && useradd --uid 10001 --gid sark --no-create-home --shell /usr/sbin/nologin sark \
    && install -d -o sark -g sark -m 0700 /var/lib/sark
COPY --from=build /opt/sark /opt/sark
ENV PATH=/opt/sark/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER sark
WORKDIR /var/lib/sark
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["sark-mw"]
CMD ["serve", "--config", "/etc/sark/sark.toml"]
