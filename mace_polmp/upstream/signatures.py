"""Parameters of the functions of mace-torch that are replaced or called, in the tested versions."""

SIGNATURES = {
    "mace.calculators.foundations_models.download_mace_mp_checkpoint": "model",
    "mace.calculators.foundations_models.mace_off": "model device default_dtype return_raw_model",
    "mace.calculators.foundations_models.mace_omol": (
        "model device default_dtype return_raw_model"
    ),
    "mace.cli.eval_configs.get_model_output": "model batch compute_stress compute_bec",
    "mace.cli.eval_configs.parse_args": "",
    "mace.cli.eval_configs.run": "args",
    "mace.cli.run_train.configure_model": (
        "args train_loader atomic_energies model_foundation heads z_table head_configs"
    ),
    "mace.cli.run_train.create_error_table": (
        "table_type all_data_loaders model loss_fn output_args log_wandb device distributed "
        "skip_heads"
    ),
    "mace.cli.run_train.get_atomic_energies": "E0s train_collection z_table",
    "mace.cli.run_train.get_dataset_from_xyz": (
        "work_dir train_path valid_path valid_fraction key_specification config_type_weights "
        "test_path seed keep_isolated_atoms head_name no_data_ok prefix"
    ),
    "mace.cli.run_train.get_loss_fn": "args dipole_only compute_dipole",
    "mace.cli.run_train.get_optimizer": "args param_options",
    "mace.cli.run_train.get_params_options": "args model",
    "mace.cli.run_train.get_swa": "args model optimizer swas dipole_only",
    "mace.cli.run_train.init_distributed": "args",
    "mace.cli.run_train.inject_LoRAs": "model rank alpha",
    "mace.cli.run_train.remove_pt_head": "model head_to_keep",
    "mace.cli.run_train.run": "args",
    "mace.cli.visualise_train.filter_nonzero_weight": (
        "batch quantity_l weight quantity_weight spread_atoms spread_quantity_vector"
    ),
    "mace.data.atomic_data.get_neighborhood": "positions cutoff pbc cell true_self_interaction",
    "mace.data.estimate_e0s_from_foundation": (
        "foundation_model foundation_e0s collections_train z_table device"
    ),
    "mace.data.load_from_xyz": (
        "file_path key_specification head_name config_type_weights extract_atomic_energies "
        "keep_isolated_atoms no_data_ok"
    ),
    "mace.data.utils.config_from_atoms": "atoms key_specification config_type_weights head_name",
    "mace.tools.tables_utils.evaluate": "model loss_fn data_loader output_args device",
    "mace.tools.train": (
        "model loss_fn train_loader valid_loaders optimizer lr_scheduler start_epoch "
        "max_num_epochs patience checkpoint_handler logger eval_interval output_args device "
        "log_errors swa ema max_grad_norm log_wandb distributed save_all_checkpoints plotter "
        "distributed_model train_sampler rank"
    ),
    "mace.tools.train.MACELoss": "loss_fn",
    "mace.tools.train.evaluate": "model loss_fn data_loader output_args device",
    "mace.tools.train.train_one_epoch": (
        "model loss_fn data_loader optimizer epoch output_args max_grad_norm ema logger "
        "device distributed distributed_model rank"
    ),
    "mace.tools.train.valid_err_log": (
        "valid_loss eval_metrics logger log_errors epoch valid_loader_name"
    ),
}
