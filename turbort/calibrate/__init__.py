"""Running a model to find out what each precision would cost at each of its call sites."""
