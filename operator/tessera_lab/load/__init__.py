"""What a load test says: answers, statistics, the engine's work, money, the knee; pure."""
