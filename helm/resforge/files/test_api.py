"""Run by `helm test`: argv[1] is the API's address. Ends with 1 and says why, unless every part is ready."""

import json
import sys
import time
import urllib.error
import urllib.request

DEADLINE_S = 60

until = time.monotonic() + DEADLINE_S
while True:
    try:
        with urllib.request.urlopen(f"{sys.argv[1]}/readyz", timeout=10) as answer:
            said = json.load(answer)
        break
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
    except OSError as error:
        said = str(error)
    if time.monotonic() > until:
        sys.exit(f"{sys.argv[1]}/readyz is not ready within {DEADLINE_S} s: {said}")
    time.sleep(1)
print(f"ready: {', '.join(said['parts'])}")
