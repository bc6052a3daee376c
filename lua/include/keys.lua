-- Names for the keys of a shard, in the order in which sark_mw/store/keys.py gives them.
local function name_keys(keys)
  return {
    meta = keys[1], spent = keys[2], held = keys[3], rolling = keys[4], periods = keys[5], holds = keys[6], leases = keys[7],
    done = keys[8], done_before = keys[9], outbox = keys[10], limits = keys[11],
    grants = keys[12],
  }
end
