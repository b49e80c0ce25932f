package remit.freeze_test
