-- Counts as internal/ratelimit does, at one key.
-- ARGV: algorithm, limit, window in ms, used, want, back, at, charge, name, channel. Answers: tokens, at, left, wait in ms.
-- Times are in microseconds. When less than a charge is left, or enough again, the channel is told, with the counter's name.
local algorithm, limit, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]) * 1000
local used, want, back, at = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local charge = tonumber(ARGV[8])
local need = math.min(charge, limit) -- more than the limit is never to be had
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local key, slots = KEYS[1], 32
local left, wait, tokens = 0, 0, 0

local function share() return math.min(want, math.floor((left + 1) / 2)) end

if algorithm == 'TOKEN_BUCKET' then
  local cost = limit > 0 and window / limit or 0
  local full = math.max(tonumber(redis.call('GET', key) or '0'), now)
  full = math.max(now, full - back * cost) + used * cost
  local function free()
    if limit <= 0 or now + window <= full then return 0 end
    return math.min(limit, math.floor((now + window - full) / cost + 1e-9))
  end
  left = free()
  tokens = share()
  full = full + tokens * cost
  left = free()
  if left < charge then wait = limit > 0 and full + need * cost - window - now or window end
  redis.call('SET', key, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
elseif algorithm == 'SLIDING_WINDOW' then
  local length = math.max(1, math.floor(window / slots))
  local part = math.floor(now / length)
  local counts, sum, old = {}, 0, {}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local p, n = tonumber(all[i]), tonumber(all[i + 1])
    if p < part - slots then
      old[#old + 1] = all[i]
    else
      counts[p] = n
      sum = sum + n
    end
  end
  if #old > 0 then redis.call('HDEL', key, unpack(old)) end
  local function add(p, n)
    if n == 0 then return end
    counts[p] = math.max(0, (counts[p] or 0) + n)
    redis.call('HSET', key, string.format('%.0f', p), counts[p])
  end
  if back > 0 then
    local p = math.floor(at / length)
    if counts[p] then
      local given = math.min(back, counts[p])
      add(p, -given)
      sum = sum - given
    end
  end
  add(part, used)
  sum = sum + used
  left = math.max(0, limit - sum)
  tokens = share()
  add(part, tokens)
  left = left - tokens
  if left < charge then
    wait = window
    local missing = need - left
    for p = part - slots, part do
      missing = missing - (counts[p] or 0)
      if missing <= 0 then
        wait = (p + slots + 1) * length - now
        break
      end
    end
  end
  redis.call('PEXPIRE', key, math.ceil((window + 2 * length) / 1000))
else
  local w = math.floor(now / window)
  local had = redis.call('HMGET', key, 'w', 'n')
  local n = tonumber(had[1] or '-1') == w and tonumber(had[2]) or 0
  if back > 0 and math.floor(at / window) == w then n = math.max(0, n - back) end
  n = n + used
  left = math.max(0, limit - n)
  tokens = share()
  n = n + tokens
  left = left - tokens
  if left < charge then wait = (w + 1) * window - now end
  redis.call('HSET', key, 'w', string.format('%.0f', w), 'n', n)
  redis.call('PEXPIRE', key, math.ceil(window / 1000) + 1000)
end
wait = math.ceil(wait / 1000)
local turned = used > 0 or tokens > 0
if left >= charge then turned = back > 0 and left + tokens + used - back < charge end
if turned then
  redis.pcall('PUBLISH', ARGV[10], string.format('%.0f %.0f %.0f %s', now, left, wait, ARGV[9])) -- pcall: who may not publish may count
end
return { tokens, now, left, wait }
