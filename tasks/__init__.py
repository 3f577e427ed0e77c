"""Problems and exact verifiers: pure Python, no torch. `tasks.registry.TASKS` names them."""
