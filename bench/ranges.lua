-- Each request asks for another 64 KiB of the blob; its size in bytes is the only argument.
local length = 64 * 1024
local size = 0

function init(arguments)
  size = tonumber(arguments[1])
  math.randomseed(1)
end

function request()
  local start = math.random(0, math.floor(size / length) - 1) * length
  return wrk.format("GET", nil, { Range = "bytes=" .. start .. "-" .. (start + length - 1) })
end
