-- Steady load for wrk: each connection asks, waits a little and asks again. The path goes through the very function that
-- is replaced, and its answer is known, so a wrong answer counts as a failure.
local path = "/steady/load"
local threads = {}

function setup(thread)
    thread:set("wrong", 0)
    thread:set("answers", 0)
    table.insert(threads, thread)
end

function request()
    return wrk.format("GET", path)
end

function delay()
    return 10
end

function response(status, headers, body)
    answers = answers + 1
    if status ~= 200 or body ~= path then
        wrong = wrong + 1
    end
end

function done(summary, latency, requests)
    local wrong, answers = 0, 0
    for _, thread in ipairs(threads) do
        wrong = wrong + thread:get("wrong")
        answers = answers + thread:get("answers")
    end
    local errors = summary.errors
    io.write(string.format(
        '\n{"requests": %d, "answers": %d, "wrong": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d, '
            .. '"seconds": %.3f, "slowest": %.6f, "typical": %.6f}\n',
        summary.requests, answers, wrong, errors.connect, errors.read, errors.write, errors.timeout, errors.status,
        summary.duration / 1e6, latency.max / 1e6, latency:percentile(50) / 1e6))
end
