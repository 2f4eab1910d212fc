"""What tests share: real Postgres, real NATS, whole platforms, and waiting without sleeping."""
