-- description: Find what administrators decided of policies among all events: every process reads on from the last one it knows.

create index limit_events_policy_idx on limit_events (seq) where kind in ('plugin', 'rule');
