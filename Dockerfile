FROM python:3.11-slim
WORKDIR /srv/baleen
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --system baleen
USER baleen
CMD ["baleen", "--help"]
