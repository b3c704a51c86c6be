"""The faults that the suite has to catch: each is a mistake that somebody could make, and that users would pay for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A mistake to plant.

    Attributes:
        name: what goes wrong.
        file: below `src/headstart`.
        right: code that occurs once in the file.
        wrong: what is put in its place.
        tests: files below `tests` that are expected to catch it.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


FAULTS = (
    # --- freezing ----------------------------------------------------------------------------------------------------
    Fault(
        "frozen BatchNorm and dropout stay in training mode",
        "models/freezing.py",
        "        module.training = False",
        "        module.training = module.training",
        ("models/test_freezing.py",),
    ),
    Fault(
        "frozen modules go back to training mode when Lightning calls train()",
        "training/classifier.py",
        "        super().train(mode)\n        hold_in_eval(self.unfreezing.frozen)",
        "        super().train(mode)",
        ("models/test_freezing.py",),
    ),
    Fault(
        "the backbone is unfrozen an epoch late",
        "models/unfreezing.py",
        "        if epoch < self.head_epochs:",
        "        if epoch <= self.head_epochs:",
        ("models/test_unfreezing.py",),
    ),
    Fault(
        "what is unfrozen later is not averaged over processes",
        "training/distributed.py",
        "        strategy.configure_ddp()",
        "        pass",
        ("models/test_unfreezing.py",),
    ),
    Fault(
        "weight decay shrinks norms and biases",
        "training/optimization.py",
        "if p.dim() <= 1 and weight_decay]",
        "if p.dim() < 1 and weight_decay]",
        ("models/test_unfreezing.py",),
    ),
    # --- fitted heads ------------------------------------------------------------------------------------------------
    Fault(
        "a fitted head's bias decays, too",
        "training/fitted_head/objective.py",
        "gradient[:, :-1] += weight_decay[:, None, None] * heads[:, :-1]",
        "gradient += weight_decay[:, None, None] * heads",
        ("training/test_fitted_head.py",),
    ),
    Fault(
        "a row is in the fit of its own fold",
        "training/fitted_head/path.py",
        "if other != fold]",
        "if other >= 0]",
        ("training/test_fitted_head.py",),
    ),
    Fault(
        "every process fits a head to its own shard",
        "training/fitted_head/fit.py",
        "sums.value, sums.gradient = all_reduce(sums.value), all_reduce(sums.gradient)",
        "sums.value, sums.gradient = 2 * sums.value, 2 * sums.gradient",
        ("training/test_fitted_head.py",),
    ),
    # --- the feature cache -------------------------------------------------------------------------------------------
    Fault(
        "the cache's key leaves the preprocessing out",
        "cache/fill.py",
        "        description = {**request.description, **transform}",
        "        description = {**request.description} or transform",
        ("cache/test_features.py",),
    ),
    Fault(
        "the cache's key leaves the precision out",
        "cache/features.py",
        '        "precision": str(network.precision.precision),\n',
        "",
        ("cache/test_features.py",),
    ),
    Fault(
        "resizing changes without the version that cached features are keyed by",
        "data/preprocessing.py",
        "v2.Resize(preprocessing.resize, InterpolationMode(preprocessing.interpolation), antialias=True)",
        "v2.Resize(preprocessing.resize + 1, InterpolationMode(preprocessing.interpolation), antialias=True)",
        ("cache/test_pixels_version.py",),
    ),
    Fault(
        "the cache's key leaves the code of a user's own network out",
        "cache/fingerprints.py",
        "            digest.update(_source(base))",
        "            pass",
        ("cache/test_engines.py",),
    ),
    Fault(
        "a damaged row is served",
        "cache/store.py",
        "!= segment.crcs[position]:",
        "!= segment.crcs[position] and False:",
        ("cache/test_store.py", "cache/test_features.py"),
    ),
    Fault(
        "a row's record is not written with it",
        "cache/store.py",
        "            _write_whole(records_file, records)",
        "            _write_whole(records_file, records[RECORD.itemsize :])",
        ("cache/test_store.py",),
    ),
    Fault(
        "a row's claim is released before the row is there",
        "cache/extraction.py",
        "            store.append(keys, compute(images, names))\n            store.release(keys)",
        "            store.release(keys)\n            store.append(keys, compute(images, names))",
        ("cache/test_store.py", "cache/test_features.py"),
    ),
    Fault(
        "a file that changed within the clock's resolution keeps its digest",
        "cache/fingerprints.py",
        "{status.st_ctime_ns} {status.st_ino}",
        "{status.st_ino}",
        ("cache/test_store.py",),
    ),
    Fault(
        "the set that was used last is evicted first",
        "cache/disk.py",
        "sorted(evictable, key=lambda item: item[0].used)",
        "sorted(evictable, key=lambda item: -item[0].used)",
        ("cache/test_store.py",),
    ),
    Fault(
        "every epoch shows the first view",
        "cache/feature_loaders.py",
        "            view = self.order.epoch % self.table.views",
        "            view = 0",
        ("cache/test_features.py",),
    ),
    Fault(
        "decoded images show other parts than their files",
        "data/preprocessing.py",
        "self.crop.make_params([torch.empty(1).expand(3, height, width)])",
        "self.crop.make_params([image])",
        ("cache/test_decoded_images.py",),
    ),
    # --- data --------------------------------------------------------------------------------------------------------
    Fault(
        "labels are shifted by one",
        "data/public_datasets.py",
        ".astype(np.int64) - 1",
        ".astype(np.int64) % 10",
        ("data/test_sources.py",),
    ),
    Fault(
        "validation images stay in the training split",
        "data/splits.py",
        '            splits["train"] = splits["train"].take(remaining)',
        "            del remaining",
        ("data/test_splits.py", "data/test_sources.py"),
    ),
    Fault(
        "images of a group stand on both sides of a split",
        "data/grouped_split.py",
        "    codes = np.array([numbers[group] for group in samples.groups])",
        "    codes = np.array([number // 2 % len(numbers) for number in range(len(samples))])",
        ("data/test_groups.py",),
    ),
    Fault(
        "a class may be missing from a split by groups",
        "data/grouped_split.py",
        " + 2 * self.images.sum() * missing.sum(axis=-1)",
        " + 0 * missing.sum(axis=-1)",
        ("data/test_groups.py",),
    ),
    Fault(
        "a group in two official splits is not noticed",
        "data/build.py",
        "    check_apart(source.splits if data.folds is None else pooled_splits(source))\n",
        "",
        ("data/test_groups.py",),
    ),
    Fault(
        "file names that look grouped are not mentioned",
        "data/build.py",
        "    return [suggestion.warning] if suggestion else []",
        "    return []",
        ("data/test_group_names.py",),
    ),
    Fault(
        "a photograph's orientation is ignored",
        "data/image_io.py",
        "        image = ImageOps.exif_transpose(image)",
        "        pass",
        ("data/test_image_io.py",),
    ),
    Fault(
        "every epoch has the same order",
        "data/samplers.py",
        'mixed_seed("order", self.seed, self.epoch)',
        'mixed_seed("order", self.seed)',
        ("data/test_preprocessing.py", "cache/test_features.py"),
    ),
    Fault(
        "a process counts images that another one counts, too",
        "data/datamodule.py",
        "        return range(self._rank, len(self.splits[split]), self._world)",
        "        return range(len(self.splits[split]))",
        ("data/test_preprocessing.py",),
    ),
    Fault(
        "a path in a table may leave its folder",
        "data/csv_table.py",
        'Path(inner).parts[0] == ".."',
        "inner is None",
        ("data/test_sources.py",),
    ),
    Fault(
        "every collection goes through the objects of all libraries",
        "utils/garbage.py",
        "if gc.get_freeze_count() < FEW:",
        "if gc.get_freeze_count() < 0:",
        ("utils/test_garbage.py",),
    ),
    Fault(
        "a network that takes one size of images is not checked at another",
        "models/build.py",
        "*backbone.description.values(), preprocessing.crop)",
        "*backbone.description.values())",
        ("models/test_backbone.py",),
    ),
    # --- stopping and resuming ---------------------------------------------------------------------------------------
    Fault(
        "a resumed epoch has the images of the first epoch",
        "data/datamodule.py",
        "        yield from super().__iter__()",
        "        return super().__iter__()",
        ("models/test_unfreezing.py",),
    ),
    Fault(
        "a resumed run draws other dropout",
        "training/callbacks.py",
        '        torch.manual_seed(mixed_seed("epoch", self.seed, trainer.current_epoch, trainer.global_rank))',
        "        pass",
        ("end_to_end/test_train.py", "models/test_unfreezing.py"),
    ),
    Fault(
        "a file is written in place",
        "utils/files.py",
        "            write(temporary)\n",
        "            write(path)\n            temporary.write_bytes(path.read_bytes())\n",
        ("utils/test_files.py", "inference/test_export.py"),
    ),
    Fault(
        "a checkpoint goes by way of another folder",
        "training/trainer.py",
        "            plugins=[AtomicCheckpointIO()],\n",
        "",
        ("end_to_end/test_robustness.py",),
    ),
    Fault(
        "a worker outlives its parent",
        "data/workers.py",
        "    os._exit(1)\n",
        "    return\n",
        ("end_to_end/test_robustness.py",),
    ),
    Fault(
        "what a description says is not checked",
        "models/schemas.py",
        "        schema.model_validate(values)\n",
        "        pass\n",
        ("models/test_model_folder.py",),
    ),
    Fault(
        "of equally accurate epochs the first is kept",
        "training/checkpoints.py",
        "tie and float(loss) < self.best_loss",
        "tie and float(loss) < 0",
        ("training/test_checkpoints.py",),
    ),
    Fault(
        "a resumed run has forgotten the loss of its best epoch",
        "training/checkpoints.py",
        '        self.best_loss = state_dict.get("best_loss")',
        "        self.best_loss = None",
        ("training/test_checkpoints.py",),
    ),
    Fault(
        "a run that is resumed after its last epoch has no metrics of it",
        "training/callbacks.py",
        '        self._values = state_dict["values"]',
        "        self._values = {}",
        ("training/test_checkpoints.py",),
    ),
    Fault(
        "a job fails because an epoch after its best one has diverged",
        "runs/jobs.py",
        " if not name.startswith(LAST_EPOCH)]",
        "]",
        ("sweeps/test_jobs.py",),
    ),
    Fault(
        "the last epoch's weights are tested instead of the best ones",
        "training/checkpoints.py",
        '        classifier.load_state_dict(checkpoint["state_dict"])',
        "        pass",
        ("end_to_end/test_train.py",),
    ),
    Fault(
        "a checkpoint may run code",
        "models/model_folder.py",
        'map_location="cpu", weights_only=True)',
        'map_location="cpu", weights_only=False)',
        ("models/test_model_folder.py", "end_to_end/test_train.py"),
    ),
    # --- one answer --------------------------------------------------------------------------------------------------
    Fault(
        "the temperature is applied twice",
        "inference/model.py",
        "(logits / self.temperature).softmax",
        "(logits / self.temperature / self.temperature).softmax",
        ("inference/test_model.py", "inference/test_predict.py", "inference/test_evaluate.py"),
    ),
    Fault(
        "exported pixels are not normalised",
        "inference/export.py",
        "self.network((images - self.mean) / self.std)",
        "self.network(images)",
        ("inference/test_export.py",),
    ),
    Fault(
        "classes are matched by their order instead of their names",
        "inference/evaluate.py",
        "np.array([indices.get(name, -1) for name in data_classes], dtype=np.int64)[samples.labels]",
        "np.arange(len(data_classes), dtype=np.int64)[samples.labels]",
        ("inference/test_evaluate.py",),
    ),
    # --- sweeps and reports ------------------------------------------------------------------------------------------
    Fault(
        "a class name is not escaped on a page",
        "report/html.py",
        "autoescape=True",
        "autoescape=False",
        ("report/test_run_report.py",),
    ),
    Fault(
        "a job that has finished is run again",
        "sweeps/job_process.py",
        "        if job.finished:\n            return job.value()\n",
        "",
        ("sweeps/test_jobs.py",),
    ),
    Fault(
        "a fold's model is trained on the images that it answers",
        "data/folds.py",
        '{"train": images.take(np.flatnonzero(~held_out)), ',
        '{"train": images, ',
        ("data/test_folds.py",),
    ),
    Fault(
        "out-of-fold answers are in the order of the folds, not of the images",
        "cross_validation/results.py",
        "    order = np.argsort(np.concatenate(held_out))",
        "    order = np.arange(len(assigned))",
        ("cross_validation/test_cross_validation.py",),
    ),
    Fault(
        "a fold that has finished is trained again",
        "cross_validation/run.py",
        "    if not read_metrics(folder):",
        "    if True:",
        ("cross_validation/test_cross_validation.py",),
    ),
    Fault(
        "a job takes over a folder of other settings",
        "runs/jobs.py",
        '        if record.get("digest") == self.digest:\n            return\n',
        "        return\n",
        ("sweeps/test_jobs.py",),
    ),
    Fault(
        "a trial whose process died is never run again",
        "sweeps/study.py",
        "        requeue_running(study)\n",
        "",
        ("sweeps/test_study.py",),
    ),
    Fault(
        "two commands run one study at the same time",
        "sweeps/study.py",
        "        lock.acquire(blocking=False)",
        "        pass",
        ("sweeps/test_study.py",),
    ),
    Fault(
        "two sweep folders run one study of a shared database",
        "sweeps/study.py",
        "            claim_study(study, jobs.folder)\n",
        "            pass\n",
        ("sweeps/test_study.py",),
    ),
    # --- the control panel -------------------------------------------------------------------------------------------
    Fault(
        "a learning-rate range test trains the classifier itself",
        "training/tuning/trial_steps.py",
        "precision.convert_module(deepcopy(classifier))",
        "precision.convert_module(classifier)",
        ("training/test_lr_range_test.py", "training/test_batch_size.py"),
    ),
    Fault(
        "a value out of range is accepted",
        "config/check.py",
        '        elif value is not None and "test" in f.metadata and not f.metadata["test"](value):',
        '        elif value is None and "test" in f.metadata and not f.metadata["test"](value):',
        ("config/test_check.py",),
    ),
    # --- what comes from outside -------------------------------------------------------------------------------------
    Fault(
        "a checkpoint is written in its place",
        "training/checkpoints.py",
        "    write_atomically(path, write, size=size)\n\n\nclass AtomicCheckpointIO",
        "    write(path)\n\n\nclass AtomicCheckpointIO",
        ("end_to_end/test_robustness.py",),
    ),
    Fault(
        "Lightning writes checkpoints in its own way",
        "training/checkpoints.py",
        "        write_checkpoint(Path(path), checkpoint)",
        "        super().save_checkpoint(checkpoint, path)",
        ("end_to_end/test_robustness.py",),
    ),
    Fault(
        "a full disk is a traceback",
        "utils/files.py",
        "        raise DiskError(disk_full_message(path, size)) from error",
        "        raise",
        (
            "utils/test_files.py",
            "end_to_end/test_robustness.py",
        ),
    ),
    Fault(
        "a terminal obeys the name of a file",
        "utils/console.py",
        '    return letter if shown else letter.encode("unicode_escape").decode("ascii")',
        "    return letter if shown else letter",
        ("end_to_end/test_robustness.py",),
    ),
    Fault(
        "a pipe is an image",
        "data/image_folder.py",
        "            elif os.path.exists(path) and not os.path.isfile(path):",
        "            elif not path:",
        ("data/test_sources.py",),
    ),
    Fault(
        "an image without permission is found out by the epoch that reads it",
        "data/dataset.py",
        "    if unreadable:",
        "    if unreadable is None:",
        ("data/test_sources.py",),
    ),
    Fault(
        "a class folder without permission is passed over",
        "data/image_folder.py",
        "    if listing.problems:",
        "    if listing.problems is None:",
        ("data/test_sources.py",),
    ),
    Fault(
        "a file whose name begins with two dots leaves the folder",
        "data/csv_table.py",
        'Path(inner).parts[0] == ".."',
        'inner.startswith("..")',
        ("data/test_sources.py",),
    ),
    Fault(
        "a label of 5,000 digits is a number",
        "data/csv_table.py",
        "label.isdecimal() and len(label) <= MAX_DIGITS",
        "label.isdecimal()",
        ("data/test_sources.py",),
    ),
    Fault(
        "a table with semicolons has one column",
        "data/csv_table.py",
        "    return max(DELIMITERS, key=preference)",
        '    return ","',
        ("data/test_sources.py",),
    ),
    Fault(
        "a table in UTF-16 is damaged",
        "data/csv_table.py",
        '"utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"',
        '"utf-8-sig"',
        ("data/test_sources.py",),
    ),
    Fault(
        "a GIF is no image",
        "data/image_io.py",
        'EXTENSIONS = (*TORCHVISION_EXTENSIONS, ".gif", ',
        "EXTENSIONS = (*TORCHVISION_EXTENSIONS, ",
        ("data/test_sources.py",),
    ),
    Fault(
        "what a stranger writes into model.json is believed",
        "models/model_folder.py",
        '    check_values(ModelFile, description, path, ModelError, "Copy it again.")\n',
        "",
        ("models/test_model_folder.py",),
    ),
    Fault(
        "what a stranger writes into a checkpoint is believed",
        "models/model_folder.py",
        '    check_values(Checkpoint, checkpoint, Path(path), ModelError, "Copy it again.")\n',
        "",
        ("models/test_model_folder.py",),
    ),
    Fault(
        "memory is taken for what a stranger describes",
        "models/network.py",
        "    check_sizes(artifact)\n",
        "",
        ("models/test_model_folder.py",),
    ),
    Fault(
        "images are read before a block that there is not is said",
        "train.py",
        "    classifier = build_classifier(",
        '    next(iter(datamodule.evaluation_dataloader("train")))\n    classifier = build_classifier(',
        ("end_to_end/test_robustness.py",),
    ),
    Fault(
        "a spreadsheet computes the name of a file",
        "utils/files.py",
        """    return f"'{value}" if formula else value""",
        "    return value",
        ("utils/test_files.py",),
    ),
    Fault(
        "heads on cached features have small batches, however many the images",
        "training/tuning/tuner.py",
        "        size *= 2",
        "        return size",
        ("training/test_batch_size.py",),
    ),
)
