"""Reconciles: thin asyncio around the pure middle. Each reads what was observed and what members tell, and makes everything anew."""
