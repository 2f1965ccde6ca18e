"""What more workers bring: weak and strong scaling."""
