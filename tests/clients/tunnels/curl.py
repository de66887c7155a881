# Sends a request through a tunnel, by libcurl: CONNECT for HTTP/1.1, CONNECT-UDP for HTTP/3.
#
#   python3 curl.py BASTION CA PROXY_VERSION VERSION URL BYTES
#
# PROXY_VERSION is the version of HTTP to the bastion, 1.1 or 2, and VERSION that of the request, 1.1 or 3. BYTES is the
# length of the body of a POST; with 0, the request is a GET. TOKEN in the environment is that of the caller. Prints the
# response, or the error with curl's trace.

import io
import os
import sys

from curl_cffi import Curl, CurlError, CurlHttpVersion, CurlInfo, CurlOpt

# Values of curl.h.
CURLPROXY_HTTPS = 2
CURLPROXY_HTTPS2 = 3
CURLHEADER_SEPARATE = 1
# Versions of HTTP, as a setting and as a result.
VERSIONS = {"1.1": (CurlHttpVersion.V1_1, 2), "3": (CurlHttpVersion.V3ONLY, 30)}

bastion, ca, proxy_version, version, url, length = sys.argv[1:]
setting, expected = VERSIONS[version]
token = os.environ["TOKEN"]
response = io.BytesIO()
curl = Curl()
curl.setopt(CurlOpt.URL, url.encode())
curl.setopt(CurlOpt.HTTP_VERSION, setting)
curl.setopt(CurlOpt.CAINFO, ca.encode())
curl.setopt(CurlOpt.PROXY, bastion.encode())
curl.setopt(CurlOpt.PROXYTYPE, {"1.1": CURLPROXY_HTTPS, "2": CURLPROXY_HTTPS2}[proxy_version])
curl.setopt(CurlOpt.HTTPPROXYTUNNEL, 1)
curl.setopt(CurlOpt.PROXY_CAINFO, ca.encode())
curl.setopt(CurlOpt.HEADEROPT, CURLHEADER_SEPARATE)
curl.setopt(CurlOpt.PROXYHEADER, [f"Proxy-Authorization: Bearer {token}".encode()])
curl.setopt(CurlOpt.TIMEOUT, 60)
curl.setopt(CurlOpt.VERBOSE, 1)
curl.setopt(CurlOpt.WRITEDATA, response)
if int(length):
    body = b"x" * int(length)
    curl.setopt(CurlOpt.POSTFIELDS, body)
    curl.setopt(CurlOpt.POSTFIELDSIZE, len(body))
try:
    curl.perform()
except CurlError as error:
    sys.exit(f"error: {error}")
assert curl.getinfo(CurlInfo.HTTP_VERSION) == expected
print("response", curl.getinfo(CurlInfo.RESPONSE_CODE), f"over HTTP/{version}")
print(response.getvalue().decode())
