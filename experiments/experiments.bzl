"""Experiments as Bazel targets."""

def kvmix_experiments(configs):
    """For every configs/NAME.textproto: `bazel run //experiments:NAME [-- flags]` and the test NAME_dry_run_test.

    The test reads the config, makes every component, and stops: a config that has gone stale fails it.
    """
    for config in configs:
        name = config.split("/")[-1][:-len(".textproto")]
        path = native.package_name() + "/" + config
        native.sh_binary(
            name = name,
            srcs = ["run_config.sh"],
            args = ["run", path],
            data = [":kvmix"],
        )
        native.sh_test(
            name = name + "_dry_run_test",
            size = "small",
            srcs = ["run_config.sh"],
            args = ["run", path, "--dry_run"],
            data = [":kvmix"],
        )
