-- description: Compress chunks after 14 days; a late correction still goes in.
-- needs: community

alter table cost_tracking set (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'root',
    timescaledb.compress_orderby = 'principal_id, reserved_at desc'
);
select add_compression_policy('cost_tracking', compress_after => interval '14 days', if_not_exists => true);
