# Two stages: the first builds the environment, the second holds only what runs.
FROM python:3.12-slim AS build
WORKDIR /app
COPY requirements.lock ./
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --requirement requirements.lock

FROM python:3.12-slim
# torch.compile builds small C launchers for its kernels the first time it meets a card.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 zbot && install -d -o zbot -g zbot /data /cache
COPY --from=build /venv /venv
WORKDIR /app
COPY bot.py pyproject.toml ./
COPY zbot zbot
COPY cogs cogs
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ZBOT_DATA_DIR=/data ZBOT_CACHE_DIR=/cache
USER zbot
VOLUME ["/data", "/cache"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-m", "zbot", "health"]
# Exec form: the bot is process 1 and hears SIGTERM itself.
ENTRYPOINT ["python", "bot.py"]
