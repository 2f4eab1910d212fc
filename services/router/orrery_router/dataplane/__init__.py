"""The proxy itself: one protocol object per connection, bytes in, bytes out, no task or timer per request."""
