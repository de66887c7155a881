# Sends a request over HTTP/3 through a UDP tunnel, by libcurl.
#
#   python3 http3_client.py BASTION CA VERSION URL BYTES
#
# VERSION is the version of HTTP to the bastion, 1.1 or 2. BYTES is the length of the body of a POST; with 0, the request
# is a GET. TOKEN in the environment is that of the caller. Prints the response, or the error with curl's trace.

import io
import os
import sys

from curl_cffi import Curl, CurlError, CurlHttpVersion, CurlInfo, CurlOpt

# Values of curl.h.
CURLPROXY_HTTPS = 2
CURLPROXY_HTTPS2 = 3
CURLHEADER_SEPARATE = 1
CURL_HTTP_VERSION_3 = 30

bastion, ca, version, url, length = sys.argv[1:]
token = os.environ["TOKEN"]
response = io.BytesIO()
curl = Curl()
curl.setopt(CurlOpt.URL, url.encode())
curl.setopt(CurlOpt.HTTP_VERSION, CurlHttpVersion.V3ONLY)
curl.setopt(CurlOpt.CAINFO, ca.encode())
curl.setopt(CurlOpt.PROXY, bastion.encode())
curl.setopt(CurlOpt.PROXYTYPE, {"1.1": CURLPROXY_HTTPS, "2": CURLPROXY_HTTPS2}[version])
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
assert curl.getinfo(CurlInfo.HTTP_VERSION) == CURL_HTTP_VERSION_3
print("response", curl.getinfo(CurlInfo.RESPONSE_CODE), "over HTTP/3")
print(response.getvalue().decode())
