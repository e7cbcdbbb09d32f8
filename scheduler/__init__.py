"""The one scheduler: requests, policies, KV memory and step plans. No clock, no random source, no torch."""
