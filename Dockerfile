# One image for the relay, the services of the demo, and what sets the compose stack up: docs/docker.md.
#
#     docker build -t saga-relay .
#     docker run --rm -v ./relay.toml:/etc/relay.toml:ro -e RELAY_CONFIG=/etc/relay.toml saga-relay run

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/constraints.txt
WORKDIR /src
RUN python -m venv /opt/build && python -m venv --without-pip /opt/relay
# What others wrote comes first, in a layer of its own: it stays when only our code changes.
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; text = tomllib.load(open('pyproject.toml', 'rb')); project = text['project']; \
        print(*text['build-system']['requires'], sep='\n', file=open('/opt/build/needs', 'w')); \
        print(*project['dependencies'], *project['optional-dependencies']['services'], 'httpx', sep='\n', \
              file=open('/opt/relay/needs', 'w'))" \
    && /opt/build/bin/pip install --requirement /opt/build/needs \
    && /opt/build/bin/pip --python /opt/relay/bin/python install --no-compile --requirement /opt/relay/needs \
    && /opt/relay/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/relay/lib
COPY . .
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/relay/bin/python install --no-compile --no-deps dist/*.whl \
    && /opt/relay/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        "$(/opt/relay/bin/python -c "import relay; print(relay.__path__[0])")" services \
    && chmod -R a+rX services sql

FROM python:3.13-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="saga-relay" \
      org.opencontainers.image.description="Tails PostgreSQL's write-ahead log and publishes to RabbitMQ; with the services of the demo" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim"
# A number instead of a name tells Kubernetes (runAsNonRoot) that this is not root. Any other number works as well.
RUN groupadd --gid 10001 relay \
    && useradd --uid 10001 --gid relay --no-log-init --no-create-home --home-dir /app --shell /usr/sbin/nologin relay \
    && install --directory --owner relay --group relay \
        /secrets/postgres /secrets/rabbitmq /secrets/relay /secrets/orders /secrets/customers /secrets/inventory
COPY --from=build /opt/relay /opt/relay
COPY --from=build /src/services /app/services
COPY --from=build /src/sql /app/sql
ENV PATH=/opt/relay/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
EXPOSE 8088
# Alive, not ready: who starts an unhealthy container anew would do so in vain while a server is away (docs/http.md).
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-m", "relay.probe", "http://127.0.0.1:8088/healthz"]
ENTRYPOINT ["relay"]
CMD ["run"]
