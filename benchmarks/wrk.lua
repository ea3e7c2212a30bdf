-- Sends the whole requests of a file in turn, over and over, and says at the end what wrk met, as one line of JSON.
-- The file: each request after its length in bytes on a line of its own.

local ffi = require("ffi")
ffi.cdef [[ typedef struct { long seconds, microseconds; } timeval; int gettimeofday(timeval *now, void *zone); ]]
local now = ffi.new("timeval")

local function microseconds()
   ffi.C.gettimeofday(now, nil)
   return tonumber(now.seconds) * 1e6 + tonumber(now.microseconds)
end

local threads = {}

function setup(thread)
   threads[#threads + 1] = thread
end

function init(args)
   requests, turn, first, last, failures = {}, 0, 0, 0, {}
   local file = assert(io.open(args[1], "rb"))
   while true do
      local length = file:read("*n")
      if not length then break end
      file:read(1)
      requests[#requests + 1] = file:read(length)
   end
   file:close()
end

function request()
   if first == 0 then first = microseconds() end
   turn = turn % #requests + 1
   return requests[turn]
end

function response(status, _, _)
   last = microseconds()
   if status ~= 200 then
      local name = tostring(status)
      failures[name] = (failures[name] or 0) + 1
   end
end

function done(summary, latency, _)
   local first, last, failures = math.huge, 0, {}
   for _, thread in ipairs(threads) do
      first = math.min(first, thread:get("first"))
      last = math.max(last, thread:get("last"))
      for name, count in pairs(thread:get("failures")) do failures[name] = (failures[name] or 0) + count end
   end
   for _, cause in ipairs({ "connect", "read", "write", "timeout" }) do
      if summary.errors[cause] > 0 then failures[cause] = summary.errors[cause] end
   end
   local counted = {}
   for name, count in pairs(failures) do counted[#counted + 1] = string.format('"%s": %d', name, count) end
   io.write(string.format(
      '{"answers": %d, "seconds": %.6f, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "failures": {%s}}\n',
      summary.requests, math.max(last - first, 0) / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
      table.concat(counted, ", ")
   ))
end
