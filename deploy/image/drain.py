"""A signed delivery whose second half is sent only after the service was told to stop: it has to be answered.

drain.py URL SECRET        prints `half` when the service has the first half
"""

import hashlib
import hmac
import socket
import sys
import time
import urllib.parse
import urllib.request

url, secret = sys.argv[1:]
address = urllib.parse.urlsplit(url)
body = b'{"zen": "Keep it logically awesome."}'
signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
head = (
    "POST /github/webhook HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nX-GitHub-Event: ping\r\n"
    f"X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
)

whole = urllib.request.Request(
    f"{url}/github/webhook", body, {"X-GitHub-Event": "ping", "Content-Type": "application/json"}
)
whole.add_header("X-Hub-Signature-256", f"sha256={signature}")
with urllib.request.urlopen(whole, timeout=5) as reply:
    assert reply.status == 200 and reply.read() == b'{"status":"ok"}', reply.status

with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
    connection.sendall(head.encode() + body[:10])
    print("half", flush=True)

    # The service no longer listens once it was told to stop.
    for _ in range(50):
        time.sleep(0.1)
        try:
            socket.create_connection((address.hostname, address.port), timeout=1).close()
        except ConnectionError:
            break
    else:
        sys.exit("the service still listens 5 s after SIGTERM")

    connection.sendall(body[10:])
    reply = b""
    while chunk := connection.recv(4096):
        reply += chunk
    print(reply.decode(errors="replace"), flush=True)
    if not reply.startswith(b"HTTP/1.1 200 "):
        sys.exit("the request that was in flight was not answered")
