"""The OpenAPI document says what the endpoint does: schemathesis asks what it allows, and what it doesn't."""

import subprocess
import sys
from pathlib import Path

# A body of random bytes that the document allows is no picture, and refused: only good pictures are accepted.
LEFT_OUT = "positive_data_acceptance"


def test_the_document_says_what_the_endpoint_does(served, endpoint):
    routes = endpoint.get("/openapi.json").json()["paths"]
    assert set(routes) == {
        "/v1/restore", "/v1/restore:batch", "/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/result", "/v1/model",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    command = [Path(sys.prefix) / "bin" / "st", "run", f"{served.url}/openapi.json", "--exclude-checks", LEFT_OUT]
    command += ["--max-examples", "10", "--generation-deterministic", "--no-color"]
    command += ["--request-timeout", "60", "--suppress-health-check", "all", "--continue-on-failure"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
