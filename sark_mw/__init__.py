"""Keep AI and API gateways within budget."""
