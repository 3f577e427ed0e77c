"""Problems and exact verifiers, without torch; Arrow is imported where data files are read. `tasks.registry.TASKS`
names them."""
