"""What the enforcer is made of: limit tables, the settler, renewal, recovery, the journal and upkeep."""
