"""The two Lua scripts of the router on Envoy: `READ` classifies a request, `ASK` asks Baleen.

Route: `READ` reads the path, finds the owner and sets headers for the routes -> the route decides whether `ASK` asks
Baleen -> if Baleen did not answer, another route is chosen.
They see headers, and the bodies of mounts and of requests for tokens; no other bytes.
A script that fails stops, and Envoy continues with the request: so no route leads to a pod without the scripts'
headers, and such headers from a client are removed.
Not here: the routes (envoy.py).
"""

from coordinator.domain.names import REPOSITORY_NAME_LIMIT
from coordinator.router.nginx import FORM_BYTES

#: The headers that the scripts set for the routes: the endpoint, the pod, and the way to go instead of to Baleen.
ENDPOINT, POD, WAY = "x-router-endpoint", "x-router-pod", "x-router-way"
HEADERS = (ENDPOINT, POD, WAY)

#: Its context is, for each prefix, the cluster of the pod.
READ = (
    f"local FORM_BYTES, NAME_LIMIT = {FORM_BYTES}, {REPOSITORY_NAME_LIMIT}\n"
    """
local ENDPOINTS = {
  {"begin", "^/v2/(.+)/blobs/uploads/?$"},
  {"upload", "^/v2/(.+)/blobs/uploads/[^/]+$"},
  {"manifest", "^/v2/(.+)/manifests/[^/]+$"},
  {"content", "^/v2/(.+)/blobs/[^/]+/?$"},
  {"content", "^/v2/(.+)/tags/list/?$"},
  {"content", "^/v2/(.+)/referrers/[^/]+/?$"},
}

local function decoded(text)
  return (text:gsub("%%(%x%x)", function(code) return string.char(tonumber(code, 16)) end))
end

-- The resolved path; nil if it has other characters than a path needs.
local function read(path)
  local text = decoded(path)
  if text:find("[^A-Za-z0-9._~:@+,;=!/-]") then return nil end
  local segments = {}
  for segment in text:gmatch("[^/]+") do
    if segment == ".." then
      if not table.remove(segments) then return nil end
    elseif segment ~= "." then
      table.insert(segments, segment)
    end
  end
  local slash = text:find("/%.?%.?$") and #segments > 0 and "/" or ""
  return "/" .. table.concat(segments, "/") .. slash
end

-- No two prefixes overlap: the first match is the only one. None is longer than a name, and joining longer ones would
-- block all requests for seconds.
local function owner(prefixes, repository)
  local prefix
  for segment in repository:gmatch("[^/]+") do
    prefix = prefix and prefix .. "/" .. segment or segment
    if #prefix > NAME_LIMIT then return nil end
    local pod = prefixes:get(prefix)
    if pod then return pod end
  end
end

-- Whether a registry may read the request as a mount; of a form only the size is known here.
local function may_mount(headers, query)
  if headers:get(":method") ~= "POST" then return false end
  if decoded(query):lower():find("mount", 1, true) then return true end
  local kind = (headers:get("content-type") or ""):lower()
  local length = (headers:get("content-length") or ""):match("^%d+$")
  return kind:find("^%s*application/x%-www%-form%-urlencoded") and length and tonumber(length) <= FORM_BYTES
    and not query:lower():find("[?&]digest=")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  for _, name in ipairs({"x-router-endpoint", "x-router-pod", "x-router-way"}) do headers:remove(name) end
  local path, query = (headers:get(":path") or ""):match("^([^?]*)(.*)$")
  path = read(path)
  if not path then return end
  for _, endpoint in ipairs(ENDPOINTS) do
    local name, pattern = endpoint[1], endpoint[2]
    local repository = path:match(pattern)
    if repository then
      if name == "begin" then
        path = path:gsub("/?$", "/", 1)
        if may_mount(headers, query) then name = "mount" end
      end
      headers:replace("x-router-endpoint", name)
      local pod = owner(handle:filterContext(), repository)
      if pod then headers:replace("x-router-pod", pod) end
      break
    end
  end
  headers:replace(":path", path .. query)
end
"""
)

#: Its context: the cluster to ask, the timeout, and the way to go for each status (or `5xx`) that is no answer.
ASK = """\
local LEFT_OUT = {
  [":status"] = true, ["connection"] = true, ["content-length"] = true, ["transfer-encoding"] = true,
  ["x-envoy-upstream-service-time"] = true,
  ["x-router-endpoint"] = true, ["x-router-pod"] = true, ["x-router-way"] = true,
}

-- Headers of a request have one pair for each value, those of an answer a list if there are several.
local function kept(headers)
  local found = {}
  for name, value in pairs(headers) do
    if not LEFT_OUT[name] then
      found[name] = found[name] or {}
      for _, each in ipairs(type(value) == "table" and value or {value}) do table.insert(found[name], each) end
    end
  end
  return found
end

function envoy_on_request(handle)
  local told = handle:filterContext()
  local cluster, ways = told:get("cluster"), told:get("ways")
  local options = {timeout_ms = told:get("timeout_ms"), return_duplicate_headers = true, send_xff = false}
  local sent, body = kept(handle:headers()), handle:body(true)
  local content = body:length() > 0 and body:getBytes(0, body:length()) or nil
  -- With retries, Envoy would not send a body in chunks.
  if not content then sent["content-length"] = "0" end
  local answer, text = handle:httpCall(cluster, sent, content, options)
  local status = answer[":status"]
  -- Envoy's own answer for a cluster without a usable server.
  if text ~= "no healthy upstream" then handle:streamInfo():dynamicMetadata():set("router", "baleen", status) end
  local way = ways[status] or ways[status:sub(1, 1) .. "xx"]
  if not way then
    local whole = kept(answer)
    whole[":status"] = status
    handle:respond(whole, text)
  end
  if way == "mount-at-pod" and answer["x-baleen-mount"] then way = "upload-at-pod" end
  local headers = handle:headers()
  headers:replace("x-router-way", way)
  if way == "upload-at-pod" then
    headers:replace(":path", (headers:get(":path"):gsub("?.*$", "")))
    headers:replace("content-length", "0")
    handle:body(true):setBytes("")
  end
  handle:clearRouteCache()
end
"""
