# Forwards to dev.py, which runs everywhere: make test ARGS="-k lanes"
.PHONY: chat test check soak setup bench run
chat test check soak setup bench run:
	@python3 dev.py $@ $(ARGS)
