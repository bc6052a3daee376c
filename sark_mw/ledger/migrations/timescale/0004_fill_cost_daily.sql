-- description: Sum up the days before yesterday that were there before the aggregate was.
-- transaction: none
-- needs: community

call refresh_continuous_aggregate('cost_daily', null, date_trunc('day', now(), 'UTC') - interval '1 day');
