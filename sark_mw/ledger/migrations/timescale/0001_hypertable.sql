-- description: Cut cost_tracking into chunks of 7 days; rows that are there already move (the table is locked meanwhile).

select create_hypertable(
    'cost_tracking', 'reserved_at',
    chunk_time_interval => interval '7 days', create_default_indexes => false, migrate_data => true
);
