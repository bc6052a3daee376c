-- description: The options of a limit, as JSON: its parent, thresholds, what it carries over; only those that it has.

alter table principal_budgets add column options text not null default '{}';
