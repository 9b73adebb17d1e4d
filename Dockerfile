# The mirror alone, without build tools, as a user without rights:
#   docker build -t headstart:0.1.0 .
#   docker run -p 127.0.0.1:5050:5050 -v headstart:/var/cache/headstart headstart:0.1.0
FROM docker.io/library/python:3.13-slim-bookworm AS build
WORKDIR /source
RUN python -m venv /opt/headstart
COPY requirements.lock .
RUN /opt/headstart/bin/pip install --no-cache-dir --only-binary :all: \
        --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md ./
COPY headstart headstart
COPY proxy proxy
COPY mount mount
RUN /opt/headstart/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/headstart/bin/pip uninstall --yes hatchling editables trove-classifiers pip

FROM docker.io/library/python:3.13-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/cache/headstart \
        headstart \
    && install --directory --mode 0750 --owner headstart --group headstart /var/cache/headstart
COPY --from=build /opt/headstart /opt/headstart
COPY deploy/container/config.yaml /etc/headstart/config.yaml
ENV PATH=/opt/headstart/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /
VOLUME /var/cache/headstart
EXPOSE 5050
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5050/healthz', timeout=2)"]
ENTRYPOINT ["headstart"]
CMD ["serve"]
