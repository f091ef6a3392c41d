"""Delivery: what is sent to which node, when, again, or never; and who hears what the nodes say."""
